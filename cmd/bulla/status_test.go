package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulla/api"
)

// People are told what is wrong, and numbers only where they tell something.
func TestStatusForPeople(t *testing.T) {
	t.Parallel()
	age, at := int64(65), time.Date(2026, 11, 23, 17, 0, 0, 0, time.UTC)
	s := &api.Status{
		Logs: []api.LogStatus{
			{Name: "audit", Origin: "example.com/audit", Size: 12},
			{Name: "web", Origin: "example.com/web", Size: 3, Refusing: &api.FailureDetail{Code: "clock", Message: "the time is not\x1b[2J known"}},
			{Name: "db", Origin: "example.com/db", LastFault: "no room"},
		},
		Machine: &api.Machine{
			Version: "1.2",
			Clock:   &api.ClockStatus{State: "synced", Estimate: &api.ClockEstimate{Offset: -1_500_000, Bound: 12_345_678}},
			HSM: map[string]any{
				"pkcs11:token=b": map[string]any{"state": "ready", "since": at, "signatures": 7, "sessions": 4},
				"pkcs11:token=a": map[string]any{"state": "failed", "since": at, "signatures": 0, "stuck": 2, "stale": 1, "error": "no such token"},
			},
			Seal:      &api.SealStatus{Number: 4, Counter: 9, AgeSeconds: &age, LastError: "the TPM does not answer"},
			SelfCheck: []api.SelfCheckStatus{{Log: "audit"}},
			Witnesses: []api.WitnessStatus{{Log: "audit", Witness: "w1", Size: 5, Time: &at}},
		},
	}
	var out bytes.Buffer
	if err := printStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	const want = `LOG    ORIGIN             ENTRIES  EVENTS
audit  example.com/audit  12       taken
web    example.com/web    3        refused (clock): the time is not\u001b[2J known
db     example.com/db     0        taken; last fault: no room

clock             synced, UTC is the system's time -1.5 ms +- 12.35 ms
hsm token=a       failed since 2026-11-23T17:00:00Z, 0 signatures, 2 calls do not return, 1 signatures of ANOTHER KEY discarded; no such token
hsm token=b       ready since 2026-11-23T17:00:00Z, 7 signatures
seal              seal 4, counter 9, 1m5s ago; last error: the TPM does not answer
self-check audit  no full round yet, nothing differs
witness audit w1  5 entries cosigned, 2026-11-23T17:00:00Z
version           1.2
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	out.Reset()
	s.Machine = nil
	if err := printStatus(&out, s); err != nil || bytes.Count(out.Bytes(), []byte("\n")) != 4 {
		t.Errorf("%v\n%s", err, out.String())
	}
	if got := sealStateLine(&api.SealStatus{Pending: true, Rollback: "older"}); got != "none since the start; one begun before a crash is not settled yet; ROLLBACK: older" {
		t.Error(got)
	}
}
