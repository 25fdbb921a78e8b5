// Package imports holds the rules of who may import whom, as a test.
package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// allowed is the whole structure: imports run downwards only.
var allowed = map[string][]string{
	"clock":            {},
	"hsm":              {},
	"internal/durable": {},
	"internal/svg":     {},
	"record":           {"clock"},
	"clock/ntp":        {"clock"},
	"attest":           {"record"},
	"store":            {"record", "internal/durable"},
	"ceremony":         {"record", "attest", "clock"},
	"tpm":              {"attest", "record"},
	"ledger":           {"clock", "record", "attest", "store", "ceremony", "internal/durable"},
	"verify":           {"clock", "record", "attest", "ceremony", "internal/durable", "internal/svg"},
	"api":              {"record", "ceremony"},
	"softhsm-test":     {"hsm", "tpm", "internal/durable"},
	"api/server":       {"api", "ledger", "record", "ceremony", "clock", "attest", "store"},
	"cmd/bulla":        {"api", "verify", "record", "attest", "ceremony", "clock", "internal/durable", "internal/svg"},
	"cmd/bullad":       {"*"},
	"internal/imports": {},
}

// only names the packages that alone may import a device's, store's or protocol's library, directly.
var only = map[string][]string{
	"github.com/miekg/pkcs11":                  {"hsm"},
	"github.com/google/go-tpm/":                {"tpm", "attest"},
	"github.com/google/go-tpm-tools/server":    {"cmd/bullad"},
	"github.com/google/go-tpm-tools/client":    {},
	"github.com/google/go-tpm-tools/simulator": {},
	"go.etcd.io/bbolt":                         {"store"},
	"github.com/beevik/ntp":                    {"clock/ntp"},
	"C":                                        {"hsm"},
}

// pure lists what an auditor's code must not reach, even through libraries. (Package net, which crypto/x509 brings, uses cgo where it
// may; bulla is built without.)
var pure = []string{"net/http", "os/exec", "runtime/cgo", "github.com/miekg/pkcs11", "go.etcd.io/bbolt", "github.com/beevik/ntp"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, cgo string, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsRunDownwards(t *testing.T) {
	t.Parallel()
	all := list(t, "1", "./...")
	if len(all) < 10 {
		t.Fatalf("only %d packages seen", len(all))
	}
	for _, p := range all {
		name := strings.TrimPrefix(p.ImportPath, "bulla/")
		if strings.Contains(name, "/internal/") { // a package's own parts follow it
			name = path.Dir(path.Dir(name))
		}
		may, known := allowed[name]
		if !known {
			t.Errorf("%s is not in the layout: add it to the rules, or move it", name)
			continue
		}
		for _, i := range p.Imports {
			if in, ours := strings.CutPrefix(i, "bulla/"); ours && may != nil && !slices.Contains(may, "*") && !slices.Contains(may, in) && !strings.HasPrefix(in, name+"/internal/") {
				t.Errorf("%s imports %s", name, in)
			}
			for lib, who := range only {
				if (i == lib || strings.HasSuffix(lib, "/") && strings.HasPrefix(i, lib) || strings.HasPrefix(i, lib+"/")) && !slices.Contains(who, name) {
					t.Errorf("%s imports %s: only %v may", name, i, who)
				}
			}
		}
	}
}

func TestVerifierIsPure(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "0", "./verify", "./record", "./attest", "./ceremony", "./clock", "./internal/durable", "./internal/svg") {
		for _, bad := range pure {
			if slices.Contains(p.Deps, bad) {
				t.Errorf("%s depends on %s", p.ImportPath, bad)
			}
		}
	}
}
