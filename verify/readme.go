package verify

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
	"text/template"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

//go:embed README.tmpl
var readmeText string

var readmeTemplate = template.Must(template.New("README").Funcs(template.FuncMap{"sh": shellQuote}).Parse(readmeText))

// readme is what the README of an export tells: what it is, and how to check it without us.
type readme struct {
	Head     record.Checkpoint
	Genesis  string   // leaf hash of entry 0, hex
	VKeys    []string // in force at the head
	Cosigned int
	TPM      bool
	Seal     *readmeSeal // the highest; nil: there is none
	Approval *approvalAt // the last; nil: there is none
	Skipped  []string
}

type readmeSeal struct {
	First, Last uint64 // numbers of seals
	Entry       uint64 // of the last
	AK          member // in the entry that enrols its TPM
	Commands    []attest.Command
}

// readme tells what a log's outline shows at its end.
func (o *outline) readme(head record.Checkpoint, state *ceremony.State, cosigned int, commands []attest.Command, skipped []string) *readme {
	r := &readme{Head: head, Genesis: hex.EncodeToString(state.Genesis[:]), Cosigned: cosigned, TPM: len(o.tpms) > 0, Approval: o.approval, Skipped: skipped}
	var err error
	if r.VKeys, err = state.VKeysAt(head.Size); err != nil || state.Genesis == (record.Hash{}) {
		r.VKeys = nil
	}
	if tpm := o.tpm(o.lastAt); o.seals > 0 && tpm != nil {
		r.Seal = &readmeSeal{First: o.first, Last: o.last, Entry: o.lastAt, AK: tpm.member, Commands: commands}
	}
	return r
}

// text is the file.
func (r *readme) text() []byte {
	var b bytes.Buffer
	if err := readmeTemplate.Execute(&b, r); err != nil { // writing to memory a template that a test has executed
		return fmt.Appendf(nil, "Evidence of log %s\n", r.Head.Origin)
	}
	return b.Bytes()
}

// shellQuote makes one word of a text for a shell: what the log says of itself must not become a command.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
