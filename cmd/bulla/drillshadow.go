package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
	"bulla/verify"
)

// shadowDrills are those that need no appliance: they are done to copies of log files.
var shadowDrills = []drill{
	{"shadow-flip", "one bit of an entry is flipped in the file", drillShadowFlip},
	{"shadow-cut", "the file is cut off in the middle of its entries", drillShadowCut},
	{"shadow-put-back", "an older copy is shown in the place of a newer one", drillShadowPutBack},
}

// shadow is a log file that was copied at rest, and what it holds.
type shadow struct {
	given    string // as named by the user; only read
	file     string // our copy
	evidence string // exported from it
	head     record.Checkpoint
	signed   []byte
}

// openShadow copies a log file, with its write-ahead file, exports the copy and verifies it.
func (l *lab) openShadow(ctx context.Context, path string) (*shadow, error) {
	dir, err := os.MkdirTemp(l.work, "shadow")
	if err != nil {
		return nil, err
	}
	s := &shadow{given: path, file: filepath.Join(dir, "log.db"), evidence: filepath.Join(dir, "evidence")}
	if err := copyLog(path, s.file); err != nil {
		return nil, usagef("--shadow: %w", err)
	}
	if err := l.exportAtRest(ctx, s.file, s.evidence); err != nil {
		return nil, coded(exitUsage, fmt.Errorf("--shadow: %s: %w", path, err))
	}
	rep, err := l.judgeAtRest(ctx, s.evidence, verify.Options{})
	if err != nil {
		return nil, err
	}
	if len(rep.Findings) > 0 {
		return nil, coded(exitTampered, fmt.Errorf("--shadow: %s is tampered with before any drill: %s; see bullad export and bulla verify", path, rep.Findings[0].Rule))
	}
	src, err := verify.OpenDir(s.evidence)
	if err != nil {
		return nil, err
	}
	s.signed, err = readEvidence(ctx, src, "checkpoint")
	if err = errors.Join(err, src.Close()); err != nil {
		return nil, err
	}
	s.head, err = headOf(s.signed)
	return s, err
}

// headOf is the head in a checkpoint that was verified before.
func headOf(signed []byte) (record.Checkpoint, error) {
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	return record.ParseCheckpoint(string(text) + "\n")
}

// copyLog copies a log's file and the write-ahead file beside it, if there is one.
func copyLog(from, to string) error {
	if err := copyFile(from, to); err != nil {
		return err
	}
	err := copyFile(from+"-wal", to+"-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// exportAtRest exports a log file that no daemon has.
func (l *lab) exportAtRest(ctx context.Context, file, to string) error {
	c := exec.CommandContext(ctx, l.bullad, "export", "--file", file, "--out", to)
	var says lastWords
	c.Stderr = &says
	if err := c.Run(); err != nil {
		return fmt.Errorf("bullad export: %w: %s", err, printable(says.String(), 500))
	}
	return nil
}

func (l *lab) judgeAtRest(ctx context.Context, evidence string, opt verify.Options) (*verify.Report, error) {
	src, err := verify.OpenDir(evidence)
	if err != nil {
		return nil, err
	}
	rep, err := verify.Run(ctx, src, l.policy, opt)
	return rep, errors.Join(err, src.Close())
}

// victim copies the first shadow for a drill.
func (x *trying) victim() (*shadow, string, error) {
	s := x.lab.shadows[0]
	file := filepath.Join(x.lab.work, x.drill.name+".db")
	return s, file, copyLog(s.file, file)
}

func drillShadowFlip(ctx context.Context, x *trying) error {
	s, file, err := x.victim()
	if err != nil {
		return err
	}
	index := s.head.Size / 2
	entry, err := s.entry(ctx, index)
	if err != nil {
		return err
	}
	n := 0
	err = eachHolding(file, entry, func(f *os.File, at int64) error {
		n++
		_, err := f.WriteAt([]byte{entry[len(entry)-1] ^ 1}, at+int64(len(entry))-1)
		return err
	})
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	x.attack("One bit of entry %d was flipped in a copy of %s (in %d places that hold it), which was exported with bullad export.", index, s.given, n)
	x.expect(ctx, byVerifier, fmt.Sprintf("bulla verify finds it at entry %d", index), func(ctx context.Context) (string, error) {
		evidence, err := os.MkdirTemp(x.lab.work, "flipped")
		if err == nil {
			err = os.Remove(evidence) // export makes it
		}
		if err == nil {
			err = x.lab.exportAtRest(ctx, file, evidence)
		}
		if err != nil {
			return "", err
		}
		rep, err := x.lab.judgeAtRest(ctx, evidence, verify.Options{})
		if err != nil {
			return "", err
		}
		for _, f := range rep.Findings {
			if f.Index != nil && *f.Index == index {
				return fmt.Sprintf("%s: %s", f.Rule, f.Meaning), nil
			}
		}
		return "", fmt.Errorf("the log is %s", rep.Verdict)
	})
	x.res.Service = "not concerned: a copy at rest"
	return nil
}

// entry reads an entry of the shadow.
func (s *shadow) entry(ctx context.Context, index uint64) (entry []byte, err error) {
	src, err := verify.OpenDir(s.evidence)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	err = verify.Tiles(s.head.Size, func(t tlog.Tile) error {
		if t.L >= 0 || uint64(t.N) != index/record.TileWidth {
			return nil
		}
		b, err := readEvidence(ctx, src, record.TilePath(t))
		if err != nil {
			return err
		}
		bundle, err := record.ParseBundle(b)
		if err == nil && index%record.TileWidth < uint64(len(bundle)) {
			entry = bundle[index%record.TileWidth]
		}
		return err
	})
	if err == nil && entry == nil {
		err = fmt.Errorf("%s has no entry %d", s.given, index)
	}
	return entry, err
}

func drillShadowCut(ctx context.Context, x *trying) error {
	s, file, err := x.victim()
	if err != nil {
		return err
	}
	index := s.head.Size / 2
	entry, err := s.entry(ctx, index)
	if err != nil {
		return err
	}
	const page = 4096
	err = eachHolding(file, entry, func(f *os.File, at int64) error { return f.Truncate(at / page * page) })
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	x.attack("A copy of %s was cut off before the page that holds entry %d, and exported with bullad export.", s.given, index)
	x.expect(ctx, byExport, "bullad export refuses it, or bulla verify finds something missing", func(ctx context.Context) (string, error) {
		evidence := filepath.Join(x.lab.work, "cut")
		if err := os.RemoveAll(evidence); err != nil {
			return "", err
		}
		if err := x.lab.exportAtRest(ctx, file, evidence); err != nil {
			return err.Error(), ctx.Err()
		}
		rep, err := x.lab.judgeAtRest(ctx, evidence, verify.Options{})
		switch {
		case err != nil:
			return "", err
		case len(rep.Findings) > 0:
			return rep.Findings[0].Rule, nil
		case rep.Size < s.head.Size:
			return "", fmt.Errorf("it was taken for a log of %d entries", rep.Size)
		}
		return "", fmt.Errorf("the log is %s", rep.Verdict)
	})
	x.res.Service = "not concerned: a copy at rest"
	return nil
}

func drillShadowPutBack(ctx context.Context, x *trying) error {
	log := x.lab.shadows[0].head.Origin
	var same []*shadow
	for _, s := range x.lab.shadows {
		if s.head.Origin == log {
			same = append(same, s)
		}
	}
	slices.SortFunc(same, func(a, b *shadow) int { return int(a.head.Size) - int(b.head.Size) })
	old, newest := same[0], same[len(same)-1]
	if old.head.Size == newest.head.Size {
		return x.notRun("it needs two copies of log " + log + ", of different times: give --shadow twice")
	}
	seen, err := verify.NewEarlier("the head of the newer copy", newest.signed)
	if err != nil {
		return err
	}
	x.attack("%s, of %d entries, was shown to somebody who had seen the head of %s, of %d.", old.given, old.head.Size, newest.given, newest.head.Size)
	x.expect(ctx, byVerifier, "bulla verify finds continuity.beyond", func(ctx context.Context) (string, error) {
		rep, err := x.lab.judgeAtRest(ctx, old.evidence, verify.Options{Earlier: []verify.Earlier{seen}})
		if err != nil {
			return "", err
		}
		for _, f := range rep.Findings {
			if f.Rule == "continuity.beyond" {
				return fmt.Sprintf("%s: %s", f.Rule, f.Meaning), nil
			}
		}
		return "", fmt.Errorf("the log is %s", rep.Verdict)
	})
	x.res.Service = "not concerned: a copy at rest"
	return nil
}

// eachHolding calls do with each place where a log's file, or its write-ahead file, holds an entry; there is at least one.
func eachHolding(file string, entry []byte, do func(f *os.File, at int64) error) error {
	holds := 0
	for _, path := range []string{file, file + "-wal"} {
		n, err := eachPlace(path, entry, do)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		holds += n
	}
	if holds == 0 {
		return errors.New("the file does not hold it in one piece")
	}
	return nil
}

// eachPlace calls do with each place where a file holds a text, and counts them.
func eachPlace(path string, text []byte, do func(f *os.File, at int64) error) (places int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	found, err := findIn(f, text)
	if err != nil {
		return 0, err
	}
	for _, at := range found {
		if err := do(f, at); err != nil {
			return 0, err
		}
	}
	return len(found), nil
}

// findIn finds a text in a file that may be large, wherever it is.
func findIn(f io.Reader, text []byte) (found []int64, err error) {
	const step = 4 << 20
	buf := make([]byte, 0, step+len(text))
	for at := int64(0); ; { // of buf
		n, err := io.ReadFull(f, buf[len(buf):len(buf)+step])
		buf = buf[:len(buf)+n]
		for from := 0; ; {
			i := bytes.Index(buf[from:], text)
			if i < 0 {
				break
			}
			found = append(found, at+int64(from+i))
			from += i + 1
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		drop := len(buf) - len(text) + 1 // what may be the beginning of one stays
		copy(buf, buf[drop:])
		buf, at = buf[:len(buf)-drop], at+int64(drop)
	}
}

// drillShadow runs the drills that need copies of log files only.
func (t *tool) drillShadow(ctx context.Context, f drillFlags, chosen []*drill) error {
	if f.policy == "" {
		return usagef("--shadow: say what the copies must be with --policy FILE")
	}
	policy, _, err := readPolicy(f.policy)
	if err != nil {
		return err
	}
	return t.inLab(f, func(l *lab, rep *drillReport) error {
		l.policy, rep.Shadows = policy, f.shadow
		for _, path := range f.shadow {
			s, err := l.openShadow(ctx, path)
			if err != nil {
				return err
			}
			l.shadows = append(l.shadows, s)
		}
		rep.Log = l.shadows[0].head.Origin
		return l.runAll(ctx, rep, chosen)
	})
}

// named is the names and purposes of drills, for a help text.
func named(all []drill) string {
	var names []string
	for _, d := range all {
		names = append(names, fmt.Sprintf("  %-16s %s", d.name, d.does))
	}
	return strings.Join(names, "\n")
}
