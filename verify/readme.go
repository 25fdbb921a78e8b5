package verify

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
	"text/template"
)

//go:embed README.tmpl
var readmeText string

var readmeTemplate = template.Must(template.New("README").Parse(readmeText))

// readme is the README of an export: what it is, and how to check it without us.
func (e *exporter) readme() []byte {
	vkeys, err := e.state.VKeys()
	if err != nil || len(vkeys) == 0 {
		vkeys = []string{"(its genesis could not be read)"}
	}
	var b bytes.Buffer
	err = readmeTemplate.Execute(&b, map[string]any{
		"Origin": e.out.Head.Origin, "Size": e.out.Head.Size, "Genesis": hex.EncodeToString(e.leaf[:]),
		"VKeys": vkeys, "VKey": vkeys[0], "Seals": e.out.Seals, "Cosigned": e.out.Cosigned, "First": e.first, "Last": e.last, "TPM": e.state.Policy.TPM != nil, "Commands": e.commands,
		"Skipped": strings.Join(e.out.Skipped, "\n"),
	})
	if err != nil { // writing to memory a template that a test has executed
		return fmt.Appendf(nil, "Evidence of log %s\n", e.out.Head.Origin)
	}
	return b.Bytes()
}
