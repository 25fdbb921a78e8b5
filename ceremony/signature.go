package ceremony

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

// Namespaces of signatures (openssh PROTOCOL.sshsig). A rejection has its own, so that it can never be shown as an approval.
const (
	Namespace       = "ceremony@bulla"
	NamespaceReject = "ceremony-reject@bulla"
)

// MaxSignature bounds an armored signature, in bytes.
const MaxSignature = 8192

// Presence is what a FIDO2 key says of the person who used it (openssh PROTOCOL.u2f).
type Presence struct {
	Counter  uint32 // signatures made, by this credential or by the whole key; some keys always say 0
	Touched  bool   // always true of a signature that was accepted
	Verified bool   // by PIN or fingerprint
}

const (
	flagTouched  = 0x01
	flagVerified = 0x04
)

// Sign makes an officer's signature of a document: what `ssh-keygen -Y sign -n ceremony@bulla` makes. An ssh-agent's keys are
// such signers too.
func Sign(random io.Reader, document []byte, d Decision, signer ssh.Signer) (armored string, err error) {
	sig, err := sshsig.SignWithRand(bytes.NewReader(document), random, signer, sshsig.HashSHA512, d.namespace())
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return armor(sig), nil
}

// Armor reads a signature file as ssh-keygen or another program wrote it, and returns it in the one form that the log takes.
func Armor(file []byte) (string, error) {
	if len(file) > MaxSignature {
		return "", refuse(RuleSignature, "%d bytes are too many for a signature: the limit is %d", len(file), MaxSignature)
	}
	p, rest := pem.Decode(file)
	if p == nil || p.Type != sshsig.PEMType || len(p.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return "", refuse(RuleSignature, "not an armored SSH signature: it begins with -----BEGIN %s-----, as `ssh-keygen -Y sign` writes it", sshsig.PEMType)
	}
	sig, err := sshsig.ParseSignature(p.Bytes)
	if err != nil {
		return "", refuse(RuleSignature, "not an SSH signature: %s", quoted(err.Error()))
	}
	if !bytes.Equal(sig.Marshal(), p.Bytes) {
		return "", refuse(RuleSignature, "has bytes that no signature has")
	}
	return armor(sig), nil
}

// armor is the form that ssh-keygen writes: base64 in lines of 70.
func armor(s *sshsig.Signature) string {
	text := base64.StdEncoding.EncodeToString(s.Marshal())
	var b strings.Builder
	b.WriteString("-----BEGIN SSH SIGNATURE-----\n")
	for ; len(text) > 70; text = text[70:] {
		b.WriteString(text[:70] + "\n")
	}
	b.WriteString(text + "\n-----END SSH SIGNATURE-----\n")
	return b.String()
}

// readSignature takes what armor makes and nothing else.
func readSignature(armored string) (*sshsig.Signature, error) {
	again, err := Armor([]byte(armored))
	if err != nil {
		return nil, err
	}
	if again != armored {
		return nil, refuse(RuleSignature, "not in the form that ssh-keygen writes: base64 in lines of 70")
	}
	return sshsig.Unarmor([]byte(armored))
}

// Check verifies the officer's signature of a document. Who signed is never taken from the signature: the key must be the
// officer's. Presence is nil of a key that says nothing of it.
func (o *Officer) Check(document []byte, d Decision, armored string) (*Presence, error) {
	sig, err := readSignature(armored)
	if err != nil {
		return nil, err
	}
	pub, err := o.PublicKey()
	if err != nil {
		return nil, refuse(RuleOfficer, "%v", err)
	}
	switch {
	case !bytes.Equal(pub.Marshal(), sig.PublicKey.Marshal()):
		return nil, refuse(RuleKey, "signed by the key %s, which is not the one that %s is appointed with (%s)", ssh.FingerprintSHA256(sig.PublicKey), o.Name, ssh.FingerprintSHA256(pub))
	case sig.Namespace != d.namespace():
		return nil, refuse(RuleNamespace, "signed for namespace %s; sign with -n %s", quoted(sig.Namespace), d.namespace())
	case sig.HashAlgorithm != sshsig.HashSHA512:
		return nil, refuse(RuleSignature, "made with %s; ssh-keygen's default, sha512, is needed", sig.HashAlgorithm)
	case !formatOf(pub, sig.Signature.Format):
		return nil, refuse(RuleSignature, "of format %s, which is not one of the key's", quoted(sig.Signature.Format))
	}
	presence, err := o.presence(pub, sig.Signature.Rest)
	if err != nil {
		return nil, err
	}
	if err := sshsig.Verify(bytes.NewReader(document), sig, pub, sshsig.HashSHA512, d.namespace()); err != nil {
		return nil, refuse(RuleSignature, "it is not %s's signature of this document: the document is another one, or was altered", o.Name)
	}
	return presence, nil
}

func formatOf(pub ssh.PublicKey, format string) bool {
	if pub.Type() == ssh.KeyAlgoRSA {
		return format == ssh.KeyAlgoRSASHA256 || format == ssh.KeyAlgoRSASHA512
	}
	return format == pub.Type()
}

// presence checks what follows the signature of an sk key: flags and counter. ssh-keygen -Y verify looks at neither.
func (o *Officer) presence(pub ssh.PublicKey, rest []byte) (*Presence, error) {
	if !isSK(pub) {
		if len(rest) > 0 {
			return nil, refuse(RuleSignature, "has bytes that no signature has")
		}
		return nil, nil
	}
	if len(rest) != 5 || rest[0]&^(flagTouched|flagVerified) != 0 {
		return nil, refuse(RuleSignature, "has other flags than those of presence and verification")
	}
	p := &Presence{Counter: binary.BigEndian.Uint32(rest[1:]), Touched: rest[0]&flagTouched != 0, Verified: rest[0]&flagVerified != 0}
	switch {
	case !p.Touched:
		return nil, refuse(RuleTouch, "the key was not touched: anybody at %s's machine could have made this signature", o.Name)
	case o.Verify && !p.Verified:
		return nil, refuse(RulePIN, "made without PIN or fingerprint, which %s must give; sign with -O verify-required, or a key made with it", o.Name)
	}
	return p, nil
}
