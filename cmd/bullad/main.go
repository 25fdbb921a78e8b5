// Command bullad is the appliance: it takes events on a local socket, stamps, chains, signs and seals them, and answers with
// receipts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"bulla/api/server"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/store"
	"bulla/tpm"
)

// Exit codes (sysexits.h where there is one).
const (
	exitOK          = 0
	exitUsage       = 64 // wrong arguments, configuration, or key: nothing was changed
	exitUnavailable = 69 // a device does not answer
	exitIO          = 74
	exitSoftware    = 70 // a commit's outcome is unknown: start again
)

// The heap may grow for speed while it is small; near the limit it is collected as often as it takes.
const (
	gcPercent   = 400
	memoryLimit = 200 << 20
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	syscall.Umask(0o077)
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + server.Readers())
	}
	if err := harden(); err != nil {
		fmt.Fprintln(os.Stderr, "bullad:", err)
		return exitSoftware
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := execute(ctx, args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bullad: %v%s\n", err, advice(err))
	}
	return exitCode(err)
}

// execute runs the command that the arguments name. What is refused before the command begins is a usage error.
func execute(ctx context.Context, args []string) error {
	root := &cobra.Command{
		Use:           "bullad",
		Short:         "Signing appliance for audit logs",
		Long:          "bullad keeps signed, timestamped, TPM-sealed logs. Producers send events to its socket; see bulla(1) for their tool.",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(serveCommand(), initCommand(), checkCommand(), exportCommand(), tpmPrepareCommand(), sealPINCommand(), tsaRequestCommand(), devCommand(), versionCommand())
	root.SetArgs(args)
	begun := false
	tell(root, &begun)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !begun {
		return usagef("%w; see `%s --help`", err, cmd.CommandPath())
	}
	return err
}

// tell has begun be set when the command, or one below it, begins.
func tell(c *cobra.Command, begun *bool) {
	if do := c.RunE; do != nil {
		c.RunE = func(cmd *cobra.Command, given []string) error {
			*begun = true
			return do(cmd, given)
		}
	}
	for _, below := range c.Commands() {
		tell(below, begun)
	}
}

// usageError marks what the operator must change before trying again.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var u usageError
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return exitOK
	case errors.Is(err, tpm.ErrUnavailable):
		return exitUnavailable
	case errors.As(err, &u), errors.Is(err, ledger.ErrKey), errors.Is(err, ledger.ErrOrigin), errors.Is(err, hsm.ErrPIN),
		errors.Is(err, hsm.ErrNoToken), errors.Is(err, hsm.ErrNoKey), errors.Is(err, hsm.ErrManyKeys), errors.Is(err, hsm.ErrWrongKey),
		errors.Is(err, hsm.ErrKeyExists), errors.Is(err, hsm.ErrExtractable), errors.Is(err, hsm.ErrNoPIN), errors.Is(err, hsm.ErrWeakKey),
		errors.Is(err, hsm.ErrUnsupported), errors.Is(err, ledger.ErrUncovered), errors.Is(err, tpm.ErrOtherMachine),
		errors.Is(err, tpm.ErrNotApproved), errors.Is(err, tpm.ErrAltered), errors.Is(err, tpm.ErrAuth):
		return exitUsage
	case errors.Is(err, ledger.ErrUnknown):
		return exitSoftware
	case errors.Is(err, hsm.ErrUnavailable):
		return exitUnavailable
	case errors.Is(err, store.ErrDamaged), errors.Is(err, ledger.ErrInconsistent):
		return exitIO
	}
	return exitIO
}

// advice is what to do about errors that come from below and do not say so themselves.
func advice(err error) string {
	for _, a := range []struct {
		is error
		do string
	}{
		{hsm.ErrNoToken, "plug the token in, or correct token= in the key's URI (pkcs11-tool --module MODULE -L lists what there is)"},
		{hsm.ErrNoKey, "correct object= or id= in the key's URI; bullad init makes the key of a new log"},
		{tpm.ErrOtherMachine, "the logs are of another machine, or this TPM was cleared or its counter replaced: see docs/operations.md, The store is older than its TPM; bullad export copies them"},
		{tpm.ErrNotApproved, "if the change was meant, approve it with the PIN at hand: bullad seal-pin --approve --pin-source file:PATH; if not, first find out what was booted (docs/operations.md, The PIN in the TPM)"},
		{tpm.ErrAltered, "put the right file back, or seal the PIN again: bullad seal-pin --pin-source file:PATH"},
		{tpm.ErrAuth, "tpm.auth in the plan must name the file that has it (docs/operations.md, Who may change the TPM)"},
		{ledger.ErrOrigin, "correct origin or file of this [[log]] in the configuration"},
		{ledger.ErrKey, "correct key or interop of this [[log]] in the configuration; a log's key changes by ceremony only"},
		{fs.ErrNotExist, "correct the path, or put the file back"},
	} {
		if errors.Is(err, a.is) {
			return ": " + a.do
		}
	}
	return ""
}

// harden keeps secrets out of core dumps and out of other processes' reach.
func harden() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	const prSetDumpable = 4
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("forbidding core dumps: %w", errno)
	}
	return nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "bullad version %s\n", version())
			return err
		},
	}
}

// release is the version, set by the linker (make build).
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
