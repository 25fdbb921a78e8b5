package main

import (
	"strings"
	"testing"
)

// Wrong arguments are refused before anything is done, with what would be right.
func TestWrongArguments(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"nonsense":                     `unknown command "nonsense" for "bullad"; see ` + "`bullad --help`",
		"dev":                          `required flag(s) "dir" not set; see ` + "`bullad dev --help`",
		"dev appliance":                "the directory is named by a flag: bullad dev --dir appliance",
		"dev sign":                     `required flag(s) "dir" not set; see ` + "`bullad dev sign --help`",
		"dev --dir x --logs many":      `invalid argument "many" for "--logs"`,
		"dev --dir /nowhere --logs 99": "--logs: must be 1 to 16",
		"init --plan a b":              `unknown command "b" for "bullad init"`,
		"serve --frobnicate":           "unknown flag: --frobnicate",
		"serve --config /nowhere":      "/nowhere",
	} {
		if err := execute(t.Context(), strings.Fields(args)); err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("bullad %s: exit code %d, %v; want %d, %q", args, exitCode(err), err, exitUsage, want)
		}
	}
}
