package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"bulla/attest"
	"bulla/ledger"
	"bulla/record"
)

func recoverCommand() *cobra.Command {
	var config, statement string
	c := &cobra.Command{
		Use:   "recover --config FILE --statement TEXT",
		Short: "Declare that logs which are older than their TPM are gone on with",
		Long: `When bullad refuses events with code rollback, a store was put back to an older copy, or something else has used the TPM's counter or PCR.
What was sealed behind the last seal that is left is then lost. If the newer files still exist, put those back instead.

recover records that in each log, for ever: the statement, the last seal that is left, and counter, PCR and clock of the TPM as found. It is a
declaration, not proof: auditors read it as "lost, declared", and their verifier answers "not checkable" until they accept it in their policy
by the leaf hash that is printed here. bullad must not be running.`,
		Example: `  bullad recover --config /etc/bulla/bullad.toml --statement "disk failed on 3 May; restored from the backup of 1 May; ticket 4711; J. Doe"`,
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			statement = strings.TrimSpace(statement)
			if statement == "" || len(statement) > record.MaxMessage {
				return usagef("statement: say what happened and who decided this, in 1 to %d bytes; it stays in the logs", record.MaxMessage)
			}
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return declareRecovery(cmd.Context(), config, cfg, statement, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/bulla/bullad.toml", "configuration file")
	c.Flags().StringVar(&statement, "statement", "", "what happened, and who decided to go on")
	return c
}

// declareRecovery records a recovery in each log and prints what auditors need to know.
func declareRecovery(ctx context.Context, path string, cfg *Config, statement string, out io.Writer) (err error) {
	a, err := openAppliance(ctx, path, cfg, newLog(false))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	if a.sealer == nil {
		return usagef("the logs have no TPM enrolled: nothing can be known of a rollback, and nothing is to be recovered from")
	}
	r, err := a.sealer.Recover(ctx, statement)
	if errors.Is(err, ledger.ErrNoRollback) {
		return usagef("%w: bullad serve will take events; nothing was recorded", err)
	}
	if err != nil {
		return err
	}
	return a.printRecovery(r, out)
}

func (a *appliance) printRecovery(r *attest.Recovery, out io.Writer) error {
	fmt.Fprintf(out, "going on behind seal %d, from the TPM's counter at %d and PCR %x; what was sealed after that is lost, declared\n", r.Seal, r.Counter, r.PCR[:])
	for _, l := range a.logs {
		index := l.Size() - 1 // the store is ours alone
		entry, err := l.Entry(index)
		if err != nil {
			return err
		}
		leaf := record.LeafHash(entry)
		if _, err := fmt.Fprintf(out, "%s: entry %d; for the policy of auditors who accept it: recovery %x\n", l.Ledger.Origin(), index, leaf[:]); err != nil {
			return err
		}
	}
	return nil
}
