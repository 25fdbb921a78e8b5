package clock

import (
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/story.jsonl anew")

// TestStoryIsCurrent makes testdata/story.jsonl: a daemon's evidence from start to recovery, through one of everything.
func TestStoryIsCurrent(t *testing.T) {
	x := start(t, newWorld(), DefaultPolicy(), 5)
	lie := server{wrong: 250 * ms, disp: ms, out: 2 * ms, back: 2 * ms}
	x.round(with(honest(5), lie)...)
	x.wait(32 * time.Second)
	r := x.round(honest(5)...)
	if r.Mapping == nil {
		t.Fatal(r.Reason)
	}
	x.wait(20 * time.Minute)
	x.round(with(honest(5), lie, lie, lie)...) // refused
	x.round(honest(5)...)
	x.real += 3 * s1
	x.disturb(ReasonStep, 3*s1)
	x.round(honest(5)...)
	x.truth += 60 * s1
	x.slept += 60 * s1
	x.disturb(ReasonSuspend, 60*s1)
	x.wait(2 * time.Second)
	x.round(honest(5)...)
	x.wait(2 * time.Second)
	x.round(honest(5)...)
	x.wait(32 * time.Second)
	x.truth += 100 * ms
	x.round(honest(5)...)
	x.wait(2 * time.Second)
	x.round(honest(5)...)
	p := DefaultPolicy()
	p.Limit, p.Warn, p.Poll = 500*ms, 20*ms, 300*s1
	e, d := x.d.Govern(p, x.reading())
	x.d, x.log = d, append(x.log, e)
	for range 14 { // a drift is learnt
		x.wait(5 * time.Minute)
		x.truth += 10 * 300_000
		e, d := x.d.Measure(Measurement{Number: x.number + 1, Reading: x.reading(), Samples: x.ask(honest(5)...),
			Kernel: &Kernel{State: 5, Status: staUnsync, MaxError: 16_000_000}, Chronyd: &Chronyd{RefID: "7f7f0101", Stratum: 2, RefTime: x.raw + x.truth, Correction: 3 * ms, RootDisp: ms}})
		x.number++
		x.d = d
		x.log = append(x.log, e)
	}
	x.wait(5 * time.Hour)
	x.verified()

	var got []byte
	for _, e := range x.log {
		got = append(append(got, canonical(t, e)...), '\n')
	}
	const file = "testdata/story.jsonl"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got) {
		t.Errorf("%s is not what this code records: run go test ./clock -run Story -update and review the difference", file)
	}
}

// canonical sorts members as canonical JSON has them: encoding/json sorts those of maps.
func canonical(t *testing.T, e Evidence) []byte {
	t.Helper()
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if b, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	return b
}
