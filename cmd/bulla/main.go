// Command bulla is the one tool of producers, officers and auditors: it appends to a running appliance, reads and exports what it
// logged, and verifies exports on any machine, offline.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bulla/api"
)

// Exit codes (sysexits.h where there is one).
const (
	exitOK           = 0  // done, or verified
	exitTampered     = 1  // the evidence contradicts itself or the policy
	exitNotCheckable = 2  // something needed to check it is missing
	exitUsage        = 64 // wrong arguments, policy or input: nothing was done
	exitUnavailable  = 69 // unavailable, busy, refused, or outcome unknown
	exitIO           = 74
)

// defaultSocket is where an installed appliance listens.
const defaultSocket = "/run/bulla/sign.sock"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends the process
	t := &tool{in: in, out: out, err: errOut}
	root := t.command()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(errOut, "bulla:", err)
	}
	return exitCode(err)
}

// tool is what every command works with.
type tool struct {
	in       io.Reader
	out, err io.Writer
	json     bool
	socket   string
	log      string
	purpose  string // of reading
}

func (t *tool) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "bulla",
		Short: "Append to, read, export and verify signed audit logs",
		Long: `bulla is the tool of producers, officers and auditors of a bullad appliance.

Commands that speak to an appliance find it by --socket or BULLA_SOCKET: either of its two sockets, the other lies beside it.
verify needs no appliance, and trusts none.

Exit codes: 0 done or verified; 1 tampered; 2 not checkable; 64 wrong usage or configuration; 69 unavailable, busy, refused or
outcome unknown; 74 input/output.`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          help,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded(exitUsage, err) })
	flags := root.PersistentFlags()
	flags.BoolVar(&t.json, "json", false, "print JSON instead of text")
	flags.StringVar(&t.socket, "socket", "", "a socket of the appliance (default $BULLA_SOCKET, else "+defaultSocket+")")
	flags.StringVar(&t.log, "log", "", "the log's origin; needed where the appliance has several")
	for _, c := range []*cobra.Command{t.getCommand(), t.listCommand(), t.proofCommand(), t.sealCommand(), t.attestCommand(), t.challengeCommand(), t.exportCommand(), t.searchCommand()} {
		root.AddCommand(t.reads(c))
	}
	root.AddCommand(t.appendCommand(), t.statusCommand(), t.verifyCommand(), t.policyCommand(), t.clockCommand(), t.benchCommand(), t.timelineCommand(), t.ceremonyCommand(), t.drillCommand(), t.versionCommand())
	return root
}

// help is what a command does that has only commands below it.
func help(cmd *cobra.Command, given []string) error {
	if len(given) > 0 {
		return usagef("unknown command %q; see `%s --help`", given[0], cmd.CommandPath())
	}
	return cmd.Help()
}

// codedError is an error with the exit code that it ends the process with. An empty text is printed by nobody.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

func coded(code int, err error) error {
	if err == nil && code == exitOK {
		return nil
	}
	return &codedError{code, err}
}

func usagef(format string, args ...any) error { return coded(exitUsage, fmt.Errorf(format, args...)) }

func exitCode(err error) int {
	var c *codedError
	var missing *notThere
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &missing):
		return exitUsage
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, context.Canceled):
		return exitUnavailable
	}
	return exitIO
}

// args makes cobra's complaints about arguments usage errors.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return usagef("%w; see `%s --help`", err, cmd.CommandPath())
		}
		return nil
	}
}

// printJSON prints a value on standard output, indented.
func (t *tool) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding output: %w", err)
	}
	_, err = fmt.Fprintf(t.out, "%s\n", b)
	return err
}

// terminal reports whether a stream is one that a person looks at.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (t *tool) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  bulla version",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.json {
				return t.printJSON(map[string]string{"version": version()})
			}
			_, err := fmt.Fprintf(t.out, "bulla version %s\n", version())
			return err
		},
	}
}

// release is the version, set by the linker (make build, make release).
var release string

// version is the release, or what the build recorded of the module.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// sockets are the appliance's two sockets.
func (t *tool) sockets() (sign, http string) {
	path := t.socket
	if path == "" {
		path = os.Getenv("BULLA_SOCKET")
	}
	if path == "" {
		path = defaultSocket
	}
	return api.Sockets(path)
}
