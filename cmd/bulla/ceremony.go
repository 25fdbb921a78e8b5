package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// officer is what the commands of ceremonies work with.
type officer struct {
	*tool
	export  string // directory or tar file that is read instead of an appliance
	policy  string // file that pins the genesis
	as      string // name of who signs
	key     string // file of the key; "": the one that the log knows, in ssh-agent
	agent   string // socket of ssh-agent; "": there is none
	offline bool   // nothing is sent
	yes     bool   // without asking
	write   string // file to write the document to
}

func (t *tool) ceremonyCommand() *cobra.Command {
	o := &officer{tool: t, agent: os.Getenv("SSH_AUTH_SOCK")}
	cmd := &cobra.Command{
		Use:   "ceremony",
		Short: "Propose, approve and carry out what officers decide together",
		Long: `ceremony is how anything of a log's governance changes: an officer proposes a document, others approve its exact bytes, and the appliance
carries it out and records all of it in the log.

What governs is not what an appliance says: these commands read the governing entries, check that they are in the log whose head the log's
key signed, and fold them themselves. --export reads an export instead. --policy makes sure that it is the log that an auditor's policy
names by its genesis.

Officers sign with SSH keys: a private key's file, a public key's file whose private key ssh-agent holds (FIDO2 keys too), or without --key
the officer's key as the log knows it, from ssh-agent. Plain ssh-keygen on a machine that has never seen Bulla does as well:

  ssh-keygen -Y sign -n ceremony@bulla -f KEY DOCUMENT
  bulla ceremony approve DOCUMENT --as NAME --signature DOCUMENT.sig`,
		Example: `  bulla ceremony propose policy.set --set quotas.streams=500 --as alice
  bulla ceremony show 7
  bulla ceremony approve 7 --as bob
  bulla ceremony enact 7
  bulla ceremony minutes 7`,
		Args: cobra.ArbitraryArgs,
		RunE: help,
	}
	cmd.PersistentFlags().StringVar(&o.policy, "policy", "", "policy file that names the log's genesis, which is then required")
	cmd.AddCommand(o.proposeCommand(), o.showCommand(), o.decideCommand(ceremony.Approve), o.decideCommand(ceremony.Reject), o.listCommand(), o.enactCommand(), o.minutesCommand())
	return cmd
}

// reading gives a command the flag to read an export.
func (o *officer) reading(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&o.export, "export", "", "read this export, a directory or a tar file, instead of an appliance")
	return cmd
}

// signing gives a command the flags of whoever signs.
func (o *officer) signing(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&o.as, "as", "", "your name, as the log knows you")
	f.StringVar(&o.key, "key", "", "file of your SSH key: private, or public where ssh-agent holds it (default: the key that the log knows you by, from ssh-agent)")
	f.BoolVar(&o.offline, "offline", false, "send nothing: write what was signed, and the signature as its name and .sig")
	f.BoolVar(&o.yes, "yes", false, "do not ask on a terminal whether to sign what was shown")
	f.StringVar(&o.write, "out", "", "write the document to this file, which must not exist; plain ssh-keygen can sign it")
	return o.reading(cmd)
}

// maxFile bounds what an officer names as a file, in bytes.
const maxFile = 1 << 20

// readFile reads a small file that the user named.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("%s: there is no such file", path)
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, usagef("%s: larger than %d bytes", path, maxFile)
	}
	return b, nil
}

// here is the time as this machine knows it. The appliance judges by its own.
func here() clock.Stamp {
	return clock.Stamp{Sys: time.Now().UnixNano(), State: clock.Synced, HasEstimate: true}
}

// post sends canonical JSON and reads the answer.
func (a *appliance) post(ctx context.Context, path string, body, answer any) error {
	b, err := record.MarshalCanonical(body)
	if err != nil {
		return fmt.Errorf("asking the appliance: %w", err)
	}
	if b, err = a.do(ctx, http.MethodPost, a.prefix+path, "", bytes.NewReader(b)); err != nil {
		return err
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return coded(exitUnavailable, fmt.Errorf("asking the appliance: the answer to %s: %w", path, err))
	}
	return nil
}

// legible is canonical JSON for people: indented, and what is not printable as JSON escapes it, so that it means the same and cannot
// pretend to be something else.
func legible(b []byte) string {
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		return ceremony.Printable(string(b)) // no JSON
	}
	var out strings.Builder
	for _, r := range indented.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r) && r != unicode.ReplacementChar:
			out.WriteRune(r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// indent puts a text two spaces to the right.
func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}
