package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulla/verify"
)

func (t *tool) verifyCommand() *cobra.Command {
	var policy string
	var receipts, earlier []string
	var m memory
	var page string
	var selftest bool
	cmd := &cobra.Command{
		Use:   "verify EVIDENCE",
		Short: "Check an exported log, offline",
		Long: `verify checks an exported log: a directory or an uncompressed tar file in C2SP tlog-tiles layout. It needs no appliance and
no network. The URL of a tile tree that is served (https://..., http+unix:///run/bulla/http.sock), or --socket in place of EVIDENCE,
has it checked where it is. The answer is one of three:

  verified       every claim that the policy requires was checked and holds (exit 0)
  tampered       the evidence contradicts itself or the policy; the findings say where and how (exit 1)
  not checkable  nothing contradicts, but something needed is missing; the report says what (exit 2)

Trust comes from the policy file: the log's verifier keys and the leaf hash of its genesis, had from the ceremony's minutes or from
the operator's records, not from the appliance. Without one the answer is at best not checkable. Lines of a policy:

  log VKEY              a key of the log: it must sign the head, unless a ceremony in the log replaced it, or made it later
                        (C2SP tlog-policy)
  genesis HEX [ORIGIN]  the leaf hash of entry 0
  witness NAME VKEY     a witness's key; group NAME any|all|K MEMBER... of them
  quorum NAME|none      the witness or group that must have cosigned the log
  ek-root BASE64        a certificate (DER) of an authority that may certify the TPM's endorsement key
  ak HEX                the Name of an attestation key that the TPM may have
  seals none            the log has no TPM: do without seals
  time none             do without checks of time
  tail N                at most N entries may be without seal, receipt or cosignatures

--receipt checks a receipt (INDEX.json or INDEX.tlog-proof) by itself and against the log.

A log that was not found tampered is remembered: its size and root, and how far its TPM had come. The next run checks that the log
extends that, so that a shorter or another log is found even where nothing else tells. --earlier does the same with a checkpoint or an
export that was kept. To check an old export after a newer one, which is legitimate, say --no-memory: that an export is shorter than
what was seen looks like a log that was put back, and it cannot be told from one by itself.

--html writes the report as one page too: nothing is loaded by it, it needs no script, and it prints. The file must not exist.

--selftest shows that this verifier finds tampering with this very evidence: it tampers with copies of it, in memory, in every way of
docs/selftest.md, one at a time, and says which rule found each, and where. Exit 0: all that can be tried were found; 1: one was not;
2: the evidence itself is not verified, and nothing was tried.`,
		Example: "  bulla verify /media/evidence --policy auditor.policy\n  bulla verify evidence.tar --policy auditor.policy --receipt 17.json --json\n  bulla verify evidence --policy auditor.policy --earlier last-year.tar",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			opt, err := readReceipts(receipts)
			if err != nil {
				return err
			}
			p, policyFile, err := readPolicy(policy)
			if err != nil {
				return err
			}
			if len(given) == 0 && !cmd.Flags().Changed("socket") {
				return usagef("name the evidence: a directory, a tar file, the URL of a tile tree, or an appliance with --socket; see `bulla verify --help`")
			}
			if selftest && (page != "" || len(earlier) > 0 || m.path != "") {
				return usagef("--selftest goes with --policy, --receipt and --json only")
			}
			if selftest {
				return t.selftest(cmd.Context(), strings.Join(given, ""), p, opt.Receipts)
			}
			for _, path := range earlier {
				e, err := readEarlier(cmd.Context(), path)
				if err != nil {
					return err
				}
				opt.Earlier = append(opt.Earlier, e)
			}
			if m.off && m.path != "" {
				return usagef("--memory and --no-memory contradict each other")
			}
			if err := free(page); err != nil {
				return err
			}
			rep, err := t.verify(cmd.Context(), strings.Join(given, ""), p, opt, &m)
			if err != nil {
				return err
			}
			if page != "" {
				if err := writePage(page, &verify.Page{Report: rep, Evidence: strings.Join(given, ""), Policy: policyFile, Tool: "bulla " + version(), Made: time.Now()}); err != nil {
					return err
				}
			}
			return coded(verdictCode(rep.Verdict), nil)
		},
	}
	cmd.Flags().StringVar(&policy, "policy", "", "file that says what to trust")
	cmd.Flags().StringArrayVar(&receipts, "receipt", nil, "receipt to check against the log; may be repeated")
	cmd.Flags().StringArrayVar(&earlier, "earlier", nil, "checkpoint or export that was seen before, which the log must extend; may be repeated")
	cmd.Flags().StringVar(&m.path, "memory", "", "file with what earlier runs knew of the log (default: one for each log in $XDG_STATE_HOME/bulla/verify)")
	cmd.Flags().BoolVar(&m.off, "no-memory", false, "neither compare with earlier runs nor remember this one")
	cmd.Flags().StringVar(&page, "html", "", "file for the report as one page to read and print, with pictures of the log's course and clock; it must not exist")
	cmd.Flags().BoolVar(&selftest, "selftest", false, "tamper with copies of the evidence in every known way, and show that each is found")
	return t.reads(cmd)
}

// verify checks evidence, remembers what it found, and prints the report.
func (t *tool) verify(ctx context.Context, path string, policy *verify.Policy, opt verify.Options, m *memory) (*verify.Report, error) {
	src, live, done, err := t.evidence(ctx, path)
	if err != nil {
		return nil, err
	}
	defer done()
	opt.Live, path = live, cmp.Or(live, path)
	p := t.progress("verifying")
	opt.Progress = p.show
	if !m.off {
		opt.Recall = m.recall
	}
	report, err := verify.Run(ctx, src, policy, opt)
	p.clear()
	if err != nil {
		return nil, fmt.Errorf("verifying %s: %w", path, err)
	}
	kept := m.keep(report.Memory)
	if t.json {
		err = t.printJSON(report)
	} else {
		err = report.WriteText(t.out)
	}
	if err != nil {
		return nil, err
	}
	if kept != nil {
		fmt.Fprintf(t.err, "bulla: nothing is remembered of this run: %v; name a file with --memory, or say --no-memory\n", kept)
	}
	return report, nil
}

// writePage writes a report as a page, to a new file.
func writePage(path string, p *verify.Page) error {
	var b bytes.Buffer
	if err := p.WriteHTML(&b); err != nil {
		return err
	}
	return writeNew(path, b.Bytes())
}

// evidence opens what is to be verified; live says where it is served, and is empty of what is at rest.
func (t *tool) evidence(ctx context.Context, path string) (src verify.Source, live string, done func(), err error) {
	if path == "" || isServed(path) {
		src, live, err = t.liveEvidence(ctx, path)
		return src, live, func() {}, err
	}
	src, done, err = openEvidence(ctx, path)
	return src, "", done, err
}

func verdictCode(v verify.Verdict) int {
	switch v {
	case verify.OutcomeVerified:
		return exitOK
	case verify.OutcomeTampered:
		return exitTampered
	}
	return exitNotCheckable
}

// openEvidence opens a directory or a tar file; done closes it again.
func openEvidence(ctx context.Context, path string) (src verify.Source, done func(), err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, usagef("%s: there is no such directory or tar file", path)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening evidence: %w", err)
	}
	if info.IsDir() {
		dir, err := verify.OpenDir(path)
		if err != nil {
			return nil, nil, err
		}
		return dir, func() { _ = dir.Close() }, nil // read only: closing loses nothing
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("opening evidence: %w", err)
	}
	tar, err := verify.OpenTar(ctx, f, info.Size())
	if err != nil {
		return nil, nil, coded(exitUsage, errors.Join(fmt.Errorf("%s: neither a directory nor a plain tar file (unpack a compressed one first; a receipt goes behind --receipt): %w", path, err), f.Close()))
	}
	return tar, func() { _ = f.Close() }, nil
}

func readPolicy(path string) (p *verify.Policy, file []byte, err error) {
	if path == "" {
		return nil, nil, nil
	}
	if file, err = readSmall(path); err != nil {
		return nil, nil, err
	}
	if p, err = verify.ParsePolicy(file); err != nil {
		return nil, nil, usagef("%s: %w", path, err)
	}
	return p, file, nil
}

func readReceipts(paths []string) (verify.Options, error) {
	var opt verify.Options
	for _, path := range paths {
		b, err := readSmall(path)
		if err != nil {
			return opt, err
		}
		opt.Receipts = append(opt.Receipts, verify.Receipt{Name: filepath.Base(path), Data: b})
	}
	return opt, nil
}

// readSmall reads a file that the user named and that cannot be large.
func readSmall(path string) ([]byte, error) {
	const limit = 2 << 20
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("%s: there is no such file", path)
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > limit {
		return nil, usagef("%s: larger than %d bytes, so neither policy nor receipt", path, limit)
	}
	return b, nil
}
