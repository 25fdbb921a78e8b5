package main

import (
	"context"
	"fmt"

	"bulla/verify"
)

// selftest tampers with copies of evidence and prints what the verifier found; the error carries the exit code.
func (t *tool) selftest(ctx context.Context, path string, policy *verify.Policy, receipts []verify.Receipt) error {
	if policy == nil {
		return usagef("--selftest begins with evidence that is verified, so it needs the auditor's policy: give --policy FILE")
	}
	if path == "" || isServed(path) {
		return usagef("--selftest reads evidence more than a hundred times: export it first, and name the directory or tar file")
	}
	src, done, err := openEvidence(ctx, path)
	if err != nil {
		return err
	}
	defer done()
	p := t.progress("tampering:")
	p.unit = "mutations"
	report, err := verify.Selftest(ctx, src, policy, verify.SelftestOptions{Receipts: receipts, Progress: p.show})
	p.clear()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if t.json {
		err = t.printJSON(report)
	} else {
		err = report.WriteText(t.out)
	}
	switch {
	case err != nil:
		return err
	case len(report.Trials) == 0:
		return coded(exitNotCheckable, nil)
	case !report.Passed():
		return coded(exitTampered, nil)
	}
	return nil
}
