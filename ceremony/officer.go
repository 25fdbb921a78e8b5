package ceremony

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"bulla/clock"
	"bulla/record"
)

// Officer is a person who takes part in ceremonies. One officer has one key: whoever gets a new one is appointed anew.
type Officer struct {
	Key       string `json:"key"`                  // an SSH public key as in authorized_keys, without options and comment
	Name      string `json:"name"`                 // unique within the log, whatever its case; the principal of allowed_signers
	Touch     bool   `json:"touch,omitzero"`       // signatures prove that the key was touched: true of FIDO2 (sk) keys, and only of them
	ValidFrom string `json:"valid_from,omitempty"` // in UTC, nine digits and Z; absent: always
	ValidTo   string `json:"valid_to,omitempty"`   // the first instant at which it no longer is; absent: for ever
	Verify    bool   `json:"verify,omitzero"`      // sk keys: signatures must prove a PIN or a fingerprint too
}

// Limits of officers.
const (
	MaxOfficers = 32
	maxName     = 64   // bytes of a name
	maxKey      = 1600 // bytes of a public key's text: RSA of 8192 bits fits
	minRSA      = 3072
	maxRSA      = 8192
)

// Default is the threshold of the actions that have none of their own.
const Default = "default"

// minThreshold is how many officers must approve at least: one alone is no ceremony.
const minThreshold = 2

// Threshold is how many officers must approve the action; 0 where none are appointed.
func (g *Genesis) Threshold(action string) int {
	if n, ok := g.Thresholds[action]; ok {
		return n
	}
	return g.Thresholds[Default]
}

// Officer returns the officer of that name.
func (g *Genesis) Officer(name string) (*Officer, bool) {
	for i := range g.Officers {
		if g.Officers[i].Name == name {
			return &g.Officers[i], true
		}
	}
	return nil, false
}

// validateOfficers refuses officers who are not told apart, thresholds that let one act alone, and those that could lock all out.
func (g *Genesis) validateOfficers() error {
	if len(g.Officers) == 0 {
		if len(g.Thresholds) > 0 || g.ProposerCounts {
			return fmt.Errorf("thresholds: they need officers; appoint officers, or leave thresholds and proposer_counts out")
		}
		return nil
	}
	if len(g.Officers) > MaxOfficers {
		return fmt.Errorf("officers: %d are too many: the limit is %d", len(g.Officers), MaxOfficers)
	}
	for i := range g.Officers {
		if err := g.validateOfficer(i); err != nil {
			return fmt.Errorf("officers[%d].%w", i, err)
		}
	}
	if _, ok := g.Thresholds[Default]; !ok {
		return fmt.Errorf("thresholds.%s: required with officers", Default)
	}
	for _, action := range slices.Sorted(maps.Keys(g.Thresholds)) {
		if action != Default && action != ActionGenesis && !knownAction(action) {
			return fmt.Errorf("thresholds.%s: there is no such action", action)
		}
		if n := g.Thresholds[action]; n < minThreshold {
			return fmt.Errorf("thresholds.%s: %d officer could act alone; at least %d must approve", action, n, minThreshold)
		}
	}
	return g.enough(forever)
}

func (g *Genesis) validateOfficer(i int) error {
	o := &g.Officers[i]
	if !isName(o.Name) {
		return fmt.Errorf("name: must be 1 to %d letters, digits and . _ - @", maxName)
	}
	pub, err := o.PublicKey()
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if o.Touch != isSK(pub) {
		return fmt.Errorf("touch: must be true of a FIDO2 key (sk-...), whose signatures prove it, and absent of any other")
	}
	if o.Verify && !isSK(pub) {
		return fmt.Errorf("verify: only a FIDO2 key (sk-...) proves that its PIN was given")
	}
	for _, t := range []struct{ field, value string }{{"valid_from", o.ValidFrom}, {"valid_to", o.ValidTo}} {
		if t.value != "" {
			if _, err := record.ParseTime(t.value); err != nil {
				return fmt.Errorf("%s: %w", t.field, err)
			}
		}
	}
	if b := o.bounds(); b.from >= b.to {
		return fmt.Errorf("valid_to: must be later than valid_from")
	}
	material, err := keyMaterial(pub)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	for _, other := range g.Officers[:i] {
		if strings.EqualFold(other.Name, o.Name) {
			return fmt.Errorf("name: there is another %q", other.Name)
		}
		otherPub, err := other.PublicKey()
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		if m, err := keyMaterial(otherPub); err != nil || bytes.Equal(m, material) {
			return fmt.Errorf("key: it is the key of %s too", other.Name)
		}
	}
	return nil
}

func isName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-@", c) >= 0) {
			return false
		}
	}
	return true
}

var errShape = errors.New(`must be a type, one space and base64, as "ssh-ed25519 AAAA..."; leave options and comment out`)

// PublicKey parses the officer's key: Ed25519, ECDSA over P-256 or P-384, RSA of 3072 to 8192 bits, or a FIDO2 key. It accepts one
// spelling of each: type, one space, base64.
func (o *Officer) PublicKey() (ssh.PublicKey, error) {
	if len(o.Key) > maxKey {
		return nil, fmt.Errorf("%d bytes are too many: the limit is %d", len(o.Key), maxKey)
	}
	_, text, ok := strings.Cut(o.Key, " ")
	blob, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil {
		return nil, errShape
	}
	pub, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, fmt.Errorf("not an SSH public key: %w", err)
	}
	if o.Key != keyText(pub) {
		return nil, errShape
	}
	switch pub.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return pub, nil
	case ssh.KeyAlgoRSA:
		key, ok := pub.(ssh.CryptoPublicKey)
		if !ok {
			return nil, fmt.Errorf("an RSA key without its numbers")
		}
		if n, ok := key.CryptoPublicKey().(*rsa.PublicKey); !ok || n.N.BitLen() < minRSA || n.N.BitLen() > maxRSA {
			return nil, fmt.Errorf("an RSA key must have %d to %d bits", minRSA, maxRSA)
		}
		return pub, nil
	}
	return nil, fmt.Errorf("keys of type %s are not accepted; use ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, ssh-rsa, or a FIDO2 key", quoted(pub.Type()))
}

// Fingerprint is how ssh-keygen -l shows the officer's key: SHA256 and base64.
func (o *Officer) Fingerprint() string {
	pub, err := o.PublicKey()
	if err != nil {
		return "no key" // a state has no such officer
	}
	return ssh.FingerprintSHA256(pub)
}

func keyText(pub ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(pub)), "\n")
}

func isSK(pub ssh.PublicKey) bool {
	return pub.Type() == ssh.KeyAlgoSKED25519 || pub.Type() == ssh.KeyAlgoSKECDSA256
}

// keyMaterial is what makes two keys the same, whatever SSH calls them.
func keyMaterial(pub ssh.PublicKey) ([]byte, error) {
	key, ok := pub.(ssh.CryptoPublicKey)
	if !ok {
		return nil, fmt.Errorf("not a public key")
	}
	var material crypto.PublicKey = key.CryptoPublicKey()
	return x509.MarshalPKIXPublicKey(material)
}

// AllowedSigners is the file that ssh-keygen -Y verify takes, for all officers of the log. (ssh-keygen alone does not prove touch.)
func (g *Genesis) AllowedSigners() []byte {
	var b bytes.Buffer
	for _, o := range g.Officers {
		fmt.Fprintf(&b, "%s namespaces=\"%s,%s\" %s\n", o.Name, Namespace, NamespaceReject, o.Key)
	}
	return b.Bytes()
}

// span is when an officer may act, in ns since 1970: from the first instant to that at which it ends.
type span struct{ from, to int64 }

const (
	always  = -1 << 63
	forever = 1<<63 - 1
)

// bounds of an officer that was validated.
func (o *Officer) bounds() span {
	b := span{always, forever}
	if t, err := record.ParseTime(o.ValidFrom); err == nil {
		b.from = t
	}
	if t, err := record.ParseTime(o.ValidTo); err == nil {
		b.to = t
	}
	return b
}

// validAt refuses an officer who may not act yet or any more, or of whom that is not certain, when the stamp was made.
func (o *Officer) validAt(s clock.Stamp, floor int64) error {
	b := o.bounds()
	switch {
	case b.from > always && s.Earliest() < b.from:
		return refuse(RuleOfficer, "%s may act from %s on, and that time has not certainly come", o.Name, o.ValidFrom)
	case b.to < forever && max(s.Latest(), floor) >= b.to:
		return refuse(RuleOfficer, "%s may act until %s, and that time may have passed", o.Name, o.ValidTo)
	}
	return nil
}

// enoughFrom checks that at no time from t on the officers are too few.
func (g *Genesis) enoughFrom(t int64) error {
	times := []int64{t}
	for i := range g.Officers {
		b := g.Officers[i].bounds()
		times = append(times, b.from, b.to)
	}
	slices.SortFunc(times, cmp.Compare[int64])
	for _, x := range slices.Compact(times) {
		if x >= t {
			if err := g.enough(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// enough checks that each threshold can be reached at time t, even when one officer is lost.
func (g *Genesis) enough(t int64) error {
	n := 0
	for i := range g.Officers {
		if b := g.Officers[i].bounds(); b.from <= t && (t < b.to || b.to == forever) {
			n++
		}
	}
	when := "from some time on"
	if t < forever && t > always {
		when = "at " + string(record.AppendTime(nil, t))
	}
	for _, action := range slices.Sorted(maps.Keys(g.Thresholds)) {
		can, why := n-1, "one may be lost"
		switch {
		case action == ActionGenesis:
			can, why = n, "all may have to sign"
		case !g.ProposerCounts:
			can, why = n-2, "one may be lost, and who proposes does not count"
		}
		if g.Thresholds[action] > can {
			return fmt.Errorf("thresholds.%s: %d cannot be reached by the %d officer(s) that there are %s (%s): everyone would be locked out; appoint more, lower it, or set proposer_counts",
				action, g.Thresholds[action], n, when, why)
		}
	}
	return nil
}
