package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bulla/attest"
	"bulla/internal/durable"
	"bulla/record"
	"bulla/verify"
)

func (t *tool) bootsCommand() *cobra.Command {
	var extract, out string
	cmd := &cobra.Command{
		Use:   "boots [DIR]",
		Short: "List what was measured while the machine started, and get the lists",
		Long: `boots lists the starts of which a log has the boot event log or the kernel's IMA list: of a running appliance, or of DIR, an export. Whether they
lead to the PCR values that the TPM quoted is what bulla verify says.

--extract writes a list to a file, for tpm2_eventlog and other tools.`,
		Example: "  bulla attest boots evidence\n  bulla attest boots evidence --extract 9fa1... --out eventlog.bin && tpm2_eventlog eventlog.bin",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			b := &bootList{starts: []startLine{}}
			if extract != "" {
				sum, err := hex.DecodeString(extract)
				if err != nil || len(sum) != len(record.Hash{}) {
					return usagef("--extract: name a list by its SHA-256, %d hex digits; bulla attest boots shows them", 2*len(record.Hash{}))
				}
				b.want = (*record.Hash)(sum)
			}
			if (extract == "") != (out == "") {
				return usagef("--extract and --out go together")
			}
			if err := t.readBoots(cmd.Context(), given, b); err != nil {
				return err
			}
			if b.want == nil {
				return t.printBoots(b)
			}
			return t.extractBoot(b, out)
		},
	}
	cmd.Flags().StringVar(&extract, "extract", "", "SHA-256 of a list, in hex")
	cmd.Flags().StringVar(&out, "out", "", "file to make of it; it must not exist")
	return cmd
}

// startLine is what is listed of a start.
type startLine struct {
	Index    uint64    `json:"index"`
	Time     time.Time `json:"time"` // by the system's clock
	Seal     uint64    `json:"seal"`
	EventLog string    `json:"event_log,omitempty"` // SHA-256, hex
	IMA      string    `json:"ima,omitempty"`
	Replayed bool      `json:"replayed"` // the daemon's own judgement
	Message  string    `json:"message,omitempty"`
}

// bootList is what a log holds of starts, and the blob that is wanted of it.
type bootList struct {
	starts []startLine
	want   *record.Hash
	parts  []record.Blob
}

// add takes the next entry of kind system or blob.
func (b *bootList) add(e *record.Entry) error {
	if e.Kind == record.KindBlob {
		p, err := record.ParseBlob(e.Body)
		if err != nil || b.want == nil || p.SHA256 != *b.want {
			return err
		}
		if p.Part == 0 && len(b.parts) < p.Parts { // again, after an end in between
			b.parts = nil
		}
		if len(b.parts) == p.Part {
			b.parts = append(b.parts, *p)
		}
		return nil
	}
	s, err := record.ParseSystem(e.Body)
	if err != nil || s.Boot == nil {
		return err
	}
	text := func(h *record.Hash) string {
		if h == nil {
			return ""
		}
		return hex.EncodeToString(h[:])
	}
	b.starts = append(b.starts, startLine{
		Index: e.Index, Time: time.Unix(0, e.Stamp.Sys).UTC(), Seal: s.Boot.Seal, EventLog: text(s.Boot.EventLog), IMA: text(s.Boot.IMA),
		Replayed: s.Boot.Replayed, Message: printable(s.Message, 300),
	})
	return nil
}

func (t *tool) readBoots(ctx context.Context, dir []string, b *bootList) (err error) {
	kind := record.KindSystem
	if b.want != nil {
		kind = record.KindBlob
	}
	if len(dir) == 0 {
		a, err := t.connect(ctx)
		if err != nil {
			return err
		}
		return a.eachOfKind(ctx, kind, b.add)
	}
	src, err := verify.OpenDir(dir[0])
	if err != nil {
		return usagef("%w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	size, err := exportedSize(ctx, src)
	if err != nil {
		return coded(exitNotCheckable, err)
	}
	for n := uint64(0); n*256 < size; n++ {
		if err := bundle(ctx, src, size, n, b.add, kind); err != nil {
			return err
		}
	}
	return nil
}

func (t *tool) printBoots(b *bootList) error {
	if t.json {
		return t.printJSON(b.starts)
	}
	if len(b.starts) == 0 {
		t.note("the log holds nothing of what was measured while the machine started")
		return nil
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ENTRY\tTIME\tSEAL\tLIST\tSHA-256\tTHE DAEMON SAYS")
	for _, s := range b.starts {
		for _, l := range []struct{ name, sum string }{{attest.BlobEventLog, s.EventLog}, {attest.BlobIMA, s.IMA}} {
			said := "-"
			switch {
			case l.sum == "":
				continue
			case l.name == attest.BlobEventLog && s.Replayed:
				said = "it leads to the quoted PCRs"
			case l.name == attest.BlobEventLog:
				said = s.Message
			}
			fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\n", s.Index, s.Time.Format("2006-01-02T15:04:05Z"), s.Seal, l.name, l.sum, said)
		}
	}
	return w.Flush()
}

func (t *tool) extractBoot(b *bootList, out string) error {
	data, err := record.JoinBlob(b.parts)
	if err != nil {
		return coded(exitNotCheckable, fmt.Errorf("the log does not hold all of %x: %w", b.want[:], err))
	}
	err = durable.Create(out, data, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return usagef("%s exists: name another file", out)
	}
	return err
}
