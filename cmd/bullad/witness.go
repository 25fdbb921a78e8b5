package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"bulla/internal/durable"
	"bulla/ledger"
	"bulla/record"
)

// WitnessConfig is a witness that the logs' checkpoints are submitted to (C2SP tlog-witness).
type WitnessConfig struct {
	Name     string    `toml:"name"`     // in status and metrics; absent: the verifier key's
	URL      string    `toml:"url"`      // submission prefix, before /add-checkpoint
	VKey     string    `toml:"vkey"`     // verifier key of its cosignatures, of type 0x04
	Interval *duration `toml:"interval"` // between submissions; absent: a minute
}

const (
	witnessFile     = "witnesses.json" // in the state directory: what witnesses cosigned
	witnessInterval = time.Minute
	witnessTime     = 20 * time.Second // for one request
	witnessTries    = 4                // requests for one checkpoint: a witness may know another size than it had
	maxWitnessBody  = 64 << 10         // of an answer, in bytes
	maxWitnessNotes = 16 << 20         // of the file, in bytes
	maxWitnesses    = 64
)

// validateWitnesses checks the witnesses and gives them their names.
func (c *Config) validateWitnesses() error {
	if len(c.Witnesses) > maxWitnesses {
		return fmt.Errorf("witness: more than %d", maxWitnesses)
	}
	names, keys := map[string]bool{}, map[string]bool{}
	for i := range c.Witnesses {
		w, where := &c.Witnesses[i], fmt.Sprintf("witness[%d]", i)
		v, err := record.NewWitnessVerifier(w.VKey)
		if err != nil {
			return fmt.Errorf("%s.vkey: %w", where, err)
		}
		if w.Name == "" {
			w.Name = v.Name()
		}
		u, err := url.Parse(w.URL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("%s.url: %.200q must be the prefix of the witness's paths, as https://witness.example/", where, w.URL)
		}
		if names[w.Name] || keys[w.VKey] {
			return fmt.Errorf("%s: its name or key is another witness's", where)
		}
		names[w.Name], keys[w.VKey] = true, true
		if w.Interval != nil && (time.Duration(*w.Interval) < 10*time.Millisecond || time.Duration(*w.Interval) > 24*time.Hour) {
			return fmt.Errorf("%s.interval: must be from 10ms to 24h", where)
		}
	}
	for i, l := range c.Logs {
		if len(c.Witnesses) > 0 && l.Interop == "" {
			return fmt.Errorf("log[%d].interop: witnesses know only Ed25519 lines: name an Ed25519 key of the log's token, or remove [[witness]]", i)
		}
	}
	return nil
}

// witnesses submits the logs' checkpoints, each witness by itself, and keeps what they cosigned.
type witnesses struct {
	path   string
	log    *slog.Logger
	client *http.Client
	all    []*witness
	alarm  func(ctx context.Context, message string) error

	mu    sync.Mutex
	notes []witnessNote // the largest that each witness cosigned of each log
	state map[witnessOf]*witnessState
}

// witness is one of them.
type witness struct {
	name, vkey, url string
	interval        time.Duration
	verifier        note.Verifier
}

// witnessNote is a checkpoint that a witness cosigned, as the state directory has it.
type witnessNote struct {
	Log  string `json:"log"`  // origin
	VKey string `json:"vkey"` // of the witness
	Size uint64 `json:"size"`
	Time uint64 `json:"time"` // as the witness states: seconds of Unix time
	Note []byte `json:"note"` // the log's lines and the witness's
}

// witnessOf is a log, by its origin, and the name of a witness.
type witnessOf struct{ log, witness string }

// witnessState is how it goes with a witness and a log.
type witnessState struct {
	size     uint64 // cosigned
	time     uint64 // when, as the witness states
	failures uint64 // submissions that failed since the start
	fault    string // the last submission's failure, if it failed
	alarms   uint64
	conflict string          // the last alarm
	told     map[string]bool // what was recorded
}

// conflict is that a witness knows a larger tree of a log, or another one. What it is about is reported once.
type conflict struct{ about, message string }

func (c *conflict) Error() string { return c.message }

// openWitnesses reads what witnesses cosigned before.
func (a *appliance) openWitnesses() error {
	w := &witnesses{path: filepath.Join(a.cfg.State, witnessFile), log: a.log, state: map[witnessOf]*witnessState{}}
	w.alarm = func(ctx context.Context, message string) error {
		return a.system(ctx, &record.System{Event: record.SystemAlarm, Code: record.CodeRollback, Message: message[:min(len(message), record.MaxMessage)]})
	}
	w.client = &http.Client{
		Timeout:       witnessTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var err error
	if w.notes, err = readWitnessNotes(w.path); err != nil {
		return err
	}
	for _, c := range a.cfg.Witnesses {
		one := &witness{name: c.Name, vkey: c.VKey, url: strings.TrimRight(c.URL, "/") + "/add-checkpoint", interval: witnessInterval}
		set((*duration)(&one.interval), c.Interval)
		if one.verifier, err = record.NewWitnessVerifier(c.VKey); err != nil {
			return usage(err)
		}
		w.all = append(w.all, one)
		for _, l := range a.cfg.Logs {
			st := &witnessState{told: map[string]bool{}}
			if n := w.find(l.Origin, c.VKey); n != nil {
				st.size, st.time = n.Size, n.Time
			}
			w.state[witnessOf{l.Origin, c.Name}] = st
		}
	}
	a.witnesses = w
	return nil
}

// readWitnessNotes reads the file of what witnesses cosigned; without one, there is nothing.
func readWitnessNotes(path string) ([]witnessNote, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what witnesses cosigned: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxWitnessNotes+1))
	if err != nil || len(b) > maxWitnessNotes {
		return nil, fmt.Errorf("what witnesses cosigned: reading %s: %d bytes: %w", path, len(b), cmp.Or(err, errors.New("too large")))
	}
	var notes []witnessNote
	if err := json.Unmarshal(b, &notes); err != nil {
		return nil, fmt.Errorf("what witnesses cosigned: %s: %w: it is made anew when it is removed", path, err)
	}
	return notes, nil
}

// run submits to all witnesses until ctx ends.
func (w *witnesses) run(ctx context.Context, logs []*openLog) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, one := range w.all {
		g.Go(func() error {
			tick := time.NewTicker(one.interval)
			defer tick.Stop()
			for {
				for _, l := range logs {
					if err := w.turn(ctx, one, l.Ledger); err != nil {
						return ignoreCanceled(err)
					}
				}
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
			}
		})
	}
	return g.Wait()
}

// turn submits one log's head to a witness, if it has grown since the last one, and notes how that went.
func (w *witnesses) turn(ctx context.Context, one *witness, l *ledger.Ledger) error {
	err := w.submit(ctx, one, l)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var found *conflict
	w.mu.Lock()
	st := w.state[witnessOf{l.Origin(), one.name}]
	if st.fault = ""; err != nil {
		st.fault = err.Error()
		st.failures++
	}
	tell := errors.As(err, &found) && !st.told[found.about] && len(st.told) < maxWitnesses
	if tell {
		st.told[found.about], st.conflict = true, found.message
		st.alarms++
	}
	w.mu.Unlock()
	switch {
	case tell:
		w.log.Error("a witness disagrees", "witness", one.name, "log", l.Origin(), "error", err)
		if err := w.alarm(ctx, found.message); err != nil {
			w.mu.Lock()
			delete(st.told, found.about) // the next turn tries again
			w.mu.Unlock()
			w.log.Error("the alarm could not be recorded", "error", err)
		}
	case err != nil:
		w.log.Debug("a witness did not cosign", "witness", one.name, "log", l.Origin(), "error", err)
	}
	return ctx.Err()
}

// submit has a witness cosign the head of a log. A head is submitted as growing out of the size that the witness says it knows, never
// signed anew: if the witness knows more than the log has, or other than the log has, that is a conflict.
func (w *witnesses) submit(ctx context.Context, one *witness, l *ledger.Ledger) error {
	old := uint64(0)
	if n := w.lastNote(l.Origin(), one.vkey); n != nil {
		if old = n.Size; old > l.Size() {
			return &conflict{fmt.Sprint("cosigned ", old), fmt.Sprintf("witness %s cosigned a head of log %s over %d entries, and the log has %d: its end is gone, or an older state was put back", one.name, l.Origin(), old, l.Size())}
		}
		if err := sameTree(n, one, l); err != nil {
			return err
		}
		if old == l.Size() {
			return nil
		}
	}
	for range witnessTries {
		signed := l.Checkpoint()
		text, _, _ := bytes.Cut(signed, []byte("\n\n"))
		head, err := record.ParseCheckpoint(string(text) + "\n")
		if err != nil {
			return fmt.Errorf("the log's checkpoint: %w", err)
		}
		if old > head.Size {
			return &conflict{fmt.Sprint("knows ", old), fmt.Sprintf("witness %s knows a tree of log %s over %d entries, and the log has %d: somebody signs with its key elsewhere, its end is gone, or an older state was put back", one.name, l.Origin(), old, head.Size)}
		}
		answer, known, err := w.post(ctx, one, l, old, head, signed)
		switch {
		case err != nil:
			return err
		case answer != nil:
			return w.keep(one, head, signed, answer)
		}
		old = known
	}
	return fmt.Errorf("witness %s knew another size at each of %d requests", one.name, witnessTries)
}

// sameTree checks that the log still has the tree that a witness cosigned.
func sameTree(n *witnessNote, one *witness, l *ledger.Ledger) error {
	text, _, _ := bytes.Cut(n.Note, []byte("\n\n"))
	head, err := record.ParseCheckpoint(string(text) + "\n")
	if err != nil {
		return fmt.Errorf("what witness %s cosigned: %w", one.name, err)
	}
	root, err := l.RootAt(n.Size)
	if err != nil {
		return err
	}
	if root != head.Root {
		return &conflict{fmt.Sprint("root ", n.Size), fmt.Sprintf("witness %s cosigned root %v of log %s over %d entries, and the log has root %v: it was rewritten", one.name, head.Root, l.Origin(), n.Size, root)}
	}
	return nil
}

// post sends an add-checkpoint request (C2SP tlog-witness). It returns the cosignature lines, or the size that the witness knows.
func (w *witnesses) post(ctx context.Context, one *witness, l *ledger.Ledger, old uint64, head record.Checkpoint, signed []byte) (lines []byte, known uint64, err error) {
	body := fmt.Appendf(nil, "old %d\n", old)
	if old > 0 && old < head.Size {
		proof, err := l.Consistency(old, head.Size)
		if err != nil {
			return nil, 0, err
		}
		for _, h := range proof {
			body = fmt.Appendf(body, "%s\n", h)
		}
	}
	body = append(append(body, '\n'), signed...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, one.url, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("witness %s: %w", one.name, err)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxWitnessBody+1))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, 0, fmt.Errorf("witness %s: %w", one.name, err)
	}
	switch {
	case len(b) > maxWitnessBody:
		return nil, 0, fmt.Errorf("witness %s: an answer of more than %d bytes", one.name, maxWitnessBody)
	case res.StatusCode == http.StatusOK:
		return b, 0, nil
	case res.StatusCode == http.StatusConflict:
		known, err := conflictSize(res.Header.Get("Content-Type"), b)
		if err != nil {
			return nil, 0, fmt.Errorf("witness %s: %w", one.name, err)
		}
		return nil, known, nil
	case res.StatusCode == http.StatusUnprocessableEntity:
		return nil, 0, &conflict{fmt.Sprint("other ", old), fmt.Sprintf("witness %s knows another tree of log %s over %d entries than the log has: somebody signs with its key elsewhere, or it was rewritten (%.200q)", one.name, l.Origin(), old, b)}
	}
	return nil, 0, fmt.Errorf("witness %s: %s: %.200q: is the log with its Ed25519 key known there?", one.name, res.Status, b)
}

// conflictSize is the size that a witness says it knows.
func conflictSize(contentType string, body []byte) (uint64, error) {
	kind, _, err := mime.ParseMediaType(contentType)
	text, ended := strings.CutSuffix(string(body), "\n")
	size, bad := strconv.ParseUint(text, 10, 53)
	if err != nil || kind != "text/x.tlog.size" || !ended || bad != nil || strconv.FormatUint(size, 10) != text {
		return 0, fmt.Errorf("its answer 409 does not say the size that it knows: %.100q", body)
	}
	return size, nil
}

// keep checks a witness's answer and stores what it cosigned. Lines by other keys are left out.
func (w *witnesses) keep(one *witness, head record.Checkpoint, signed, lines []byte) error {
	text := head.Text()
	n, err := note.Open(append([]byte(text+"\n"), lines...), note.VerifierList(one.verifier))
	if err != nil {
		return fmt.Errorf("witness %s: its answer is no cosignature: %w", one.name, err)
	}
	at, err := record.CosignatureTime(n.Sigs[0])
	if err != nil {
		return fmt.Errorf("witness %s: %w", one.name, err)
	}
	cosigned := fmt.Appendf(bytes.Clone(signed), "— %s %s\n", n.Sigs[0].Name, n.Sigs[0].Base64)
	w.mu.Lock()
	defer w.mu.Unlock()
	notes := slices.DeleteFunc(slices.Clone(w.notes), func(o witnessNote) bool { return o.Log == head.Origin && o.VKey == one.vkey })
	notes = append(notes, witnessNote{Log: head.Origin, VKey: one.vkey, Size: head.Size, Time: at, Note: cosigned})
	b, err := json.Marshal(notes)
	if err != nil {
		return err
	}
	if err := durable.Replace(w.path, b, 0o600); err != nil {
		return fmt.Errorf("keeping what witness %s cosigned: %w", one.name, err)
	}
	w.notes = notes
	st := w.state[witnessOf{head.Origin, one.name}]
	st.size, st.time = head.Size, at
	return nil
}

func (w *witnesses) lastNote(origin, vkey string) *witnessNote {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.find(origin, vkey)
}

func (w *witnesses) find(origin, vkey string) *witnessNote {
	for i := range w.notes {
		if n := w.notes[i]; n.Log == origin && n.VKey == vkey {
			return &n
		}
	}
	return nil
}

// cosigned are the checkpoints of a log that witnesses cosigned, the largest first; lines on the same one are joined.
func (w *witnesses) cosigned(origin string) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return cosignedNotes(w.notes, origin)
}

func cosignedNotes(notes []witnessNote, origin string) [][]byte {
	var own []witnessNote
	for _, n := range notes {
		if n.Log == origin {
			own = append(own, n)
		}
	}
	slices.SortStableFunc(own, func(a, b witnessNote) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.VKey, b.VKey))
	})
	var out [][]byte
	for _, n := range own {
		text, _, _ := bytes.Cut(n.Note, []byte("\n\n"))
		if last := len(out) - 1; last >= 0 && bytes.HasPrefix(out[last], slices.Concat(text, []byte("\n\n"))) {
			line := n.Note[bytes.LastIndexByte(n.Note[:len(n.Note)-1], '\n')+1:]
			out[last] = append(out[last], line...)
			continue
		}
		out = append(out, bytes.Clone(n.Note))
	}
	return out
}
