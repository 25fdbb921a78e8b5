package verify_test

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulla/record"
	"bulla/verify"
)

func TestPolicyFile(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin()
	p := b.policy()
	tail := uint64(1000)
	p.Tail = &tail
	p.EKRoots, p.AKs = [][]byte{maker(t, 9, "A maker")}, [][]byte{bytes.Repeat([]byte{0xab}, 34)}
	text, err := p.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	again, err := verify.ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p, again); d != "" {
		t.Error(d)
	}
	// As C2SP writes it: comments, empty lines, a URL, tabs; and the genesis without an origin where there is one log.
	loose := "# trust\n\n  log\t" + p.VKeys[0] + " https://log.example/\r\nlog " + p.VKeys[1] + "\nquorum none\nseals none\ntime none\ntail 1000\ngenesis " + strings.Fields(string(text))[5] + "\nak " + strings.Repeat("ab", 34) + "\nek-root " + base64.StdEncoding.EncodeToString(p.EKRoots[0]) + "\n"
	if again, err = verify.ParsePolicy([]byte(loose)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p, again); d != "" {
		t.Error(d)
	}
}

func TestPolicyRefusals(t *testing.T) {
	t.Parallel()
	vkey := func(origin string, ed bool) string {
		b := newBuilder(t)
		key := b.keys[0]
		if ed {
			key = b.keys[1]
		}
		v, err := record.VKey(origin, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	log := "log " + vkey(origin, false) + "\n"
	hash := strings.Repeat("ab", 32)
	witnesses := "witness w1 " + witnessKey(t, 1) + "\nwitness w2 " + witnessKey(t, 2) + " https://w2.example/\n"
	for _, c := range []struct{ about, policy, want string }{
		{"recovery, which officers declare", log + "recovery " + hash, "line 2: not understood"},
		{"unknown line", log + "trust everybody\n", "line 2: not understood"},
		{"no key", "log\n", "line 1: not understood"},
		{"key that is none", "log x+1+2\n", "line 1: malformed verifier key"},
		{"only the additional key", "log " + vkey(origin, true) + "\n", "has no ECDSA key (type 0x02)"},
		{"the additional key of another log", log + "log " + vkey("b.example", true) + "\n", `log "b.example" has no ECDSA key`},
		{"key twice", log + log, "line 2: the same log key twice"},
		{"genesis cut", log + "genesis abcd\n", "line 2: genesis: must be 64 lower-case hex digits"},
		{"genesis in capitals", log + "genesis " + strings.ToUpper(hash) + "\n", "line 2: genesis: must be"},
		{"genesis twice", log + "genesis " + hash + "\ngenesis " + hash + "\n", `line 3: a second "genesis"`},
		{"genesis twice, named", log + "genesis " + hash + " " + origin + "\ngenesis " + hash + " " + origin + "\n", "line 3: a second genesis"},
		{"genesis both ways", log + "genesis " + hash + "\ngenesis " + hash + " " + origin + "\n", "needs exactly one log"},
		{"genesis without a log", "genesis " + hash + "\n", "needs exactly one log"},
		{"genesis of which of two", log + "log " + vkey("b.example", false) + "\ngenesis " + hash + "\n", "needs exactly one log"},
		{"genesis of an unknown log", log + "genesis " + hash + " b.example\n", `a genesis of "b.example", but no key`},
		{"root that is no base64", log + "ek-root AAA\n", "line 2: ek-root: not standard base64"},
		{"root that is no certificate", log + "ek-root AAAA\n", "line 2: ek-root: x509"},
		{"attestation key that is too short", log + "ak 000b\n", "line 2: ak: must be a key's Name, 68 lower-case hex digits"},
		{"attestation key in capitals", log + "ak " + strings.Repeat("AB", 34) + "\n", "line 2: ak: must be"},
		{"witness without its key", log + "witness w\n", "line 2: the lines are `witness NAME VKEY [URL]`"},
		{"witness with another key", log + "witness w key\n", "line 2: witness: malformed verifier key of a witness"},
		{"witness with a log's key", log + "witness w " + vkey("w", true) + "\n", "has type 0x01: only 0x04"},
		{"witness twice", log + witnesses + "witness w1 " + witnessKey(t, 3) + "\n", `line 4: the name "w1" is taken`},
		{"two witnesses of one key", log + witnesses + "witness w3 " + witnessKey(t, 1) + "\n", "line 4: witness: the same key twice"},
		{"witness none", log + "witness none " + witnessKey(t, 1) + "\n", `the name "none" is taken`},
		{"group of nobody", log + witnesses + "group g all\n", "line 4: the lines are"},
		{"group of what is not named", log + witnesses + "group g all w1 w3\n", `group "g": no witness or group "w3" is named before`},
		{"group that needs too many", log + witnesses + "group g 3 w1 w2\n", "from 1 to 2 of its members"},
		{"group that needs none", log + witnesses + "group g 0 w1 w2\n", "from 1 to 2 of its members"},
		{"group that needs 01", log + witnesses + "group g 01 w1 w2\n", "from 1 to 2 of its members"},
		{"member twice", log + witnesses + "group g any w1 w1\n", `"w1" is a member already`},
		{"member of two groups", log + witnesses + "group g any w1\ngroup h any w1\n", `group "h": "w1" is a member already`},
		{"quorum that is not named", log + witnesses + "quorum g\n", `line 4: quorum: no witness or group "g" is named before`},
		{"two quorums", log + witnesses + "quorum w1\nquorum w2\n", `line 5: a second "quorum"`},
		{"quorum twice", log + "quorum none\nquorum none\n", `line 3: a second "quorum"`},
		{"tail", log + "tail many\n", "line 2: tail: not a number"},
		{"half a line", log + "seals\n", "line 2: not understood"},
		{"control characters", log + "\x1b[2Jx\n", `\x1b[2Jx`},
		{"huge", strings.Repeat("#", 2<<20), "bytes are more than"},
	} {
		if _, err := verify.ParsePolicy([]byte(c.policy)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.about, err, c.want)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	b := newBuilder(f).begin()
	text, err := b.policy().MarshalText()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("log x\ngenesis y z\nquorum none\ntail 9\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := verify.ParsePolicy(in)
		if err != nil {
			return
		}
		out, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		again, err := verify.ParsePolicy(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if out2, err := again.MarshalText(); err != nil || !bytes.Equal(out, out2) {
			t.Fatalf("%v\n%s\n%s", err, out, out2)
		}
	})
}

// Without trust, or with a part of it, nothing is verified, and the report says what is missing.
func TestTrustThatIsMissing(t *testing.T) {
	t.Parallel()
	b := newBuilder(t).begin().events(20)
	f := b.export()
	whole := b.policy()
	for _, c := range []struct {
		about   string
		policy  *verify.Policy
		missing string
	}{
		{"no policy", nil, "signatures: no policy was given"},
		{"an empty one", &verify.Policy{NoSeals: true, NoTime: true}, "signatures: the policy has no key of log"},
		{"no genesis", &verify.Policy{VKeys: whole.VKeys, NoSeals: true, NoTime: true}, "governance: the policy has no genesis of log"},
		{"seals wanted", &verify.Policy{VKeys: whole.VKeys, Genesis: whole.Genesis, NoTime: true}, "seals: the log has no TPM enrolled"},
		{"time wanted", &verify.Policy{VKeys: whole.VKeys, Genesis: whole.Genesis, NoSeals: true}, "time: no entry has an estimate"},
		{"an anchor wanted", &verify.Policy{VKeys: whole.VKeys, Genesis: whole.Genesis, NoSeals: true, NoTime: true, Tail: new(uint64)}, "anchor: the policy allows 0 entries"},
	} {
		rep := run(t, f, c.policy)
		want(t, rep, verify.OutcomeNotCheckable)
		if !strings.Contains(strings.Join(rep.Missing, "\n"), c.missing) {
			t.Errorf("%s: missing %q, want %q", c.about, rep.Missing, c.missing)
		}
	}
	// Nothing is trusted, but contradictions are found all the same.
	f["tile/entries/000.p/21"][40] ^= 1
	rep := run(t, f, nil)
	if rep.Verdict != verify.OutcomeTampered {
		t.Error(text(t, rep))
	}
}
