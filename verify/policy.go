package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"bulla/record"
)

// Policy is what an auditor trusts and demands, independently of the evidence. The zero Policy trusts nothing.
type Policy struct {
	VKeys   []string               // verifier keys (C2SP signed-note) that must all sign their log's head; the name is the log's origin
	Genesis map[string]record.Hash // leaf hash of entry 0, by origin
	EKRoots [][]byte               // DER certificates of authorities, one of which the TPM's endorsement key must be certified by; none: any TPM
	AKs     [][]byte               // Names of attestation keys, one of which the logs' TPM must have; none: the genesis says which
	NoSeals bool                   // the logs have no TPM: seals and rollback are not required
	NoTime  bool                   // time is not required
	Tail    *uint64                // the most entries that may be without an anchor; nil: any number

	Witnesses []Witness // who cosigns heads
	Groups    []Group   // of them
	Quorum    string    // the witness or group that must have cosigned; "": nobody
}

// akNameSize is the size of an attestation key's Name, in bytes: the hash algorithm and the hash.
const akNameSize = 2 + 32

// maxPolicy bounds a policy file, in bytes.
const maxPolicy = 1 << 20

// ParsePolicy reads a policy file: C2SP tlog-policy (`log VKEY`, `witness NAME VKEY`, `group NAME any|all|K MEMBER...`, `quorum NAME`, `quorum none`),
// with these lines added:
//
//	genesis HEX [ORIGIN]  the leaf hash of entry 0; the origin may be left out where there is one log
//	ek-root BASE64        a certificate (DER) of an authority that may certify the TPM's endorsement key; one of them must
//	ak HEX                the Name of an attestation key that the TPM may have; one of them must be it
//	seals none            the log has no TPM: do without seals and without protection from rollback
//	time none             do without checks of time
//	tail N                at most N entries may be without an anchor
//
// Lines that begin with # and empty lines are left out. An unknown line is an error, with its number; so is a log without its
// authoritative ECDSA key (type 0x02): an additional key is never enough.
func ParsePolicy(b []byte) (*Policy, error) {
	if len(b) > maxPolicy {
		return nil, fmt.Errorf("policy: %d bytes are more than %d", len(b), maxPolicy)
	}
	p := &Policy{Genesis: map[string]record.Hash{}}
	var unnamed *record.Hash
	seen := map[string]bool{}
	number := 0
	for line := range bytes.Lines(b) {
		number++
		words := strings.Fields(string(line))
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := p.line(words, seen, &unnamed); err != nil {
			return nil, fmt.Errorf("policy line %d: %w", number, err)
		}
	}
	if unnamed != nil {
		origins := p.origins()
		if len(origins) != 1 || len(p.Genesis) > 0 {
			return nil, fmt.Errorf("policy: `genesis HEX` without an origin needs exactly one log; write `genesis HEX ORIGIN`")
		}
		p.Genesis[origins[0]] = *unnamed
	}
	return p, p.check()
}

func (p *Policy) line(words []string, seen map[string]bool, unnamed **record.Hash) error {
	once := func() error {
		if seen[words[0]] {
			return fmt.Errorf("a second %q", words[0])
		}
		seen[words[0]] = true
		return nil
	}
	switch key, args := words[0], words[1:]; {
	case key == "log" && (len(args) == 1 || len(args) == 2): // the URL after the key is for those who fetch
		if _, err := record.NewVerifier(args[0]); err != nil {
			return err
		}
		if slices.Contains(p.VKeys, args[0]) {
			return fmt.Errorf("the same log key twice")
		}
		p.VKeys = append(p.VKeys, args[0])
		return nil
	case key == "genesis" && (len(args) == 1 || len(args) == 2):
		h, err := parseHex(key, args[0])
		if err != nil {
			return err
		}
		if len(args) == 1 {
			*unnamed = &h
			return once()
		}
		if _, twice := p.Genesis[args[1]]; twice {
			return fmt.Errorf("a second genesis for %q", args[1])
		}
		p.Genesis[args[1]] = h
		return record.CheckOrigin(args[1])
	case key == "ek-root" && len(args) == 1:
		der, err := base64.StdEncoding.Strict().DecodeString(args[0])
		if err != nil {
			return fmt.Errorf("ek-root: not standard base64: %w", err)
		}
		if _, err := x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("ek-root: %w", err)
		}
		p.EKRoots = append(p.EKRoots, der)
		return nil
	case key == "ak" && len(args) == 1:
		name, err := hex.DecodeString(args[0])
		if err != nil || len(name) != akNameSize || strings.ToLower(args[0]) != args[0] {
			return fmt.Errorf("ak: must be a key's Name, %d lower-case hex digits", 2*akNameSize)
		}
		p.AKs = append(p.AKs, name)
		return nil
	case key == "seals" && slices.Equal(args, []string{"none"}):
		p.NoSeals = true
		return once()
	case key == "time" && slices.Equal(args, []string{"none"}):
		p.NoTime = true
		return once()
	case key == "tail" && len(args) == 1:
		n, err := strconv.ParseUint(args[0], 10, 53)
		if err != nil {
			return fmt.Errorf("tail: not a number of entries")
		}
		p.Tail = &n
		return once()
	case key == "quorum":
		return errors.Join(once(), p.witnessLine(key, args))
	case key == "witness" || key == "group":
		return p.witnessLine(key, args)
	}
	return fmt.Errorf("not understood: %.60q; the lines are log, genesis, witness, group, quorum, ek-root, ak, seals none, time none, tail", strings.Join(words, " "))
}

func parseHex(key, s string) (record.Hash, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 || strings.ToLower(s) != s {
		return record.Hash{}, fmt.Errorf("%s: must be 64 lower-case hex digits", key)
	}
	return record.Hash(b), nil
}

// check refuses a policy that would accept any one of several keys.
func (p *Policy) check() error {
	for _, origin := range p.origins() {
		if !slices.ContainsFunc(p.VKeys, func(v string) bool { return vkeyName(v) == origin && isECDSA(v) }) {
			return fmt.Errorf("policy: log %q has no ECDSA key (type 0x02); that is the authoritative one, write its `log` line too", origin)
		}
	}
	for origin := range p.Genesis {
		if !slices.Contains(p.origins(), origin) {
			return fmt.Errorf("policy: a genesis of %q, but no key; write its `log` line too", origin)
		}
	}
	return nil
}

// origins are the logs that the policy has keys for, in its order.
func (p *Policy) origins() []string {
	var out []string
	for _, v := range p.VKeys {
		if name := vkeyName(v); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// keys are the verifier keys pinned for a log.
func (p *Policy) keys(origin string) []string {
	var out []string
	if p != nil {
		for _, v := range p.VKeys {
			if vkeyName(v) == origin {
				out = append(out, v)
			}
		}
	}
	return out
}

// genesis is the leaf hash pinned for a log.
func (p *Policy) genesis(origin string) (record.Hash, bool) {
	if p == nil {
		return record.Hash{}, false
	}
	h, ok := p.Genesis[origin]
	return h, ok
}

// pinned reports whether the policy says which genesis the log must have.
func (r *run) pinned() bool {
	_, ok := r.policy.genesis(r.origin)
	return ok
}

// MarshalText is the policy as a file that ParsePolicy reads.
func (p *Policy) MarshalText() ([]byte, error) {
	var b bytes.Buffer
	for _, v := range p.VKeys {
		fmt.Fprintf(&b, "log %s\n", v)
	}
	for _, origin := range p.origins() {
		if h, ok := p.Genesis[origin]; ok {
			fmt.Fprintf(&b, "genesis %x %s\n", h[:], origin)
		}
	}
	b.Write(p.appendWitnesses(nil))
	for _, der := range p.EKRoots {
		fmt.Fprintf(&b, "ek-root %s\n", base64.StdEncoding.EncodeToString(der))
	}
	for _, name := range p.AKs {
		fmt.Fprintf(&b, "ak %x\n", name)
	}
	if p.NoSeals {
		b.WriteString("seals none\n")
	}
	if p.NoTime {
		b.WriteString("time none\n")
	}
	if p.Tail != nil {
		fmt.Fprintf(&b, "tail %d\n", *p.Tail)
	}
	return b.Bytes(), p.check()
}

func vkeyName(vkey string) string {
	name, _, _ := strings.Cut(vkey, "+")
	return name
}

// isECDSA reports whether a well-formed verifier key is of type 0x02: the base64 of what begins with that byte.
func isECDSA(vkey string) bool {
	parts := strings.SplitN(vkey, "+", 3)
	return len(parts) == 3 && strings.HasPrefix(parts[2], "Aj")
}

func verifiers(vkeys []string) ([]note.Verifier, error) {
	out := make([]note.Verifier, len(vkeys))
	for i, v := range vkeys {
		var err error
		if out[i], err = record.NewVerifier(v); err != nil {
			return nil, err
		}
	}
	return out, nil
}
