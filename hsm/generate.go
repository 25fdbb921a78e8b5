package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/miekg/pkcs11"
)

// generateTime bounds Generate without a deadline: RSA takes seconds in software, more in hardware.
const generateTime = 2 * time.Minute

// maxLabel bounds labels of keys, in bytes.
const maxLabel = 255

// Generate makes a key pair in the token that never leaves it, under a label that no key there has and a random CKA_ID. It reads
// the attributes back, has the key sign once, and destroys it again unless all is as asked for. It is not repeated after an error:
// a key that was made nevertheless shows by [ErrKeyExists].
func (t *Token) Generate(ctx context.Context, a Algorithm, label string) (KeyInfo, error) {
	var info KeyInfo
	algorithm, sch, err := parseAlgorithm(a)
	if err == nil {
		err = checkLabel(label)
	}
	if err == nil {
		info, err = t.generate(ctx, algorithm, sch, label)
	}
	if err != nil {
		return KeyInfo{}, fmt.Errorf("generating key %s in token %s: %w", KeyRef{Label: label}, t.cfg, err)
	}
	return info, nil
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("it needs a label")
	case len(label) > maxLabel:
		return fmt.Errorf("label of %d bytes: at most %d", len(label), maxLabel)
	case !utf8.ValidString(label) || bytes.IndexFunc([]byte(label), func(r rune) bool { return r < ' ' || r == 0x7F }) >= 0:
		return errors.New("its label must be UTF-8 without control characters")
	case label == throwaway:
		return errors.New("that label is kept for the extraction test")
	}
	return nil
}

func (t *Token) generate(ctx context.Context, a Algorithm, sch scheme, label string) (KeyInfo, error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	t.change.Lock()
	defer t.change.Unlock()
	result := make(chan KeyInfo, 1)
	err := t.do(ctx, func(s *session) error {
		if err := s.recover(func() error { return s.vacant(label) }); err != nil {
			return err
		}
		f, err := s.generate(a, sch, label)
		if err != nil {
			return s.conclude(err)
		}
		info, err := s.accept(f)
		if err != nil {
			return s.conclude(errors.Join(err, s.destroy(f)))
		}
		result <- info
		return nil
	})
	if err != nil {
		return KeyInfo{}, err
	}
	return <-result, nil
}

// patient gives operations that make keys more time than signing has.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, generateTime)
}

// vacant refuses a label that is taken: tokens accept a second key of one label, and NSS overwrites the first.
func (s *session) vacant(label string) error {
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		taken, err := s.find(1, pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
		if err != nil {
			return err
		}
		if len(taken) != 0 {
			return ErrKeyExists
		}
	}
	return s.absent(nil)
}

// generate makes the pair. Attributes that not every token knows are tried first and left out second; what the token then did is read back.
func (s *session) generate(a Algorithm, sch scheme, label string) (found, error) {
	mechanisms, err := s.t.module.lib.GetMechanismList(s.t.slot)
	if err != nil {
		return found{}, call("C_GetMechanismList", err)
	}
	for _, need := range []uint{sch.generate, sch.sign} {
		if !slices.ContainsFunc(mechanisms, func(m *pkcs11.Mechanism) bool { return m.Mechanism == need }) {
			return found{}, fmt.Errorf("%w: the token does not offer %s (mechanism 0x%X)", ErrUnsupported, a, need)
		}
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails
	public, private := templates(sch, label, id)
	optional := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false)}
	f := found{label: label, id: id, algorithm: a}
	for _, extra := range [][]*pkcs11.Attribute{optional, nil} {
		f.public, f.private, err = s.t.module.lib.GenerateKeyPair(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(sch.generate, nil)}, public, slices.Concat(private, extra))
		if err == nil {
			return f, nil
		}
		switch err = call("C_GenerateKeyPair", err); codeOf(err) {
		case pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_GENERAL_ERROR: // the last by NSS
		default:
			return found{}, err
		}
		if err := s.vacant(label); err != nil {
			return found{}, err // it made one nevertheless
		}
	}
	return found{}, err
}

func templates(sch scheme, label string, id []byte) (public, private []*pkcs11.Attribute) {
	attribute := pkcs11.NewAttribute
	public = []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PUBLIC_KEY)), attribute(pkcs11.CKA_KEY_TYPE, sch.keyType),
		attribute(pkcs11.CKA_LABEL, label), attribute(pkcs11.CKA_ID, id), attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, false),
		attribute(pkcs11.CKA_VERIFY, true), attribute(pkcs11.CKA_ENCRYPT, false), attribute(pkcs11.CKA_WRAP, false), attribute(pkcs11.CKA_MODIFIABLE, false),
	}
	if sch.params != nil {
		public = append(public, attribute(pkcs11.CKA_EC_PARAMS, sch.params))
	} else {
		public = append(public, attribute(pkcs11.CKA_MODULUS_BITS, uint(3072)), attribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	private = []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_PRIVATE_KEY)), attribute(pkcs11.CKA_KEY_TYPE, sch.keyType),
		attribute(pkcs11.CKA_LABEL, label), attribute(pkcs11.CKA_ID, id), attribute(pkcs11.CKA_TOKEN, true), attribute(pkcs11.CKA_PRIVATE, true),
		attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false), attribute(pkcs11.CKA_SIGN, true),
		attribute(pkcs11.CKA_DECRYPT, false), attribute(pkcs11.CKA_UNWRAP, false), attribute(pkcs11.CKA_DERIVE, false), attribute(pkcs11.CKA_MODIFIABLE, false),
	}
	return public, private
}

// accept reads a new key back: the only one of its label and id, of the right kind, guarded, and able to sign.
func (s *session) accept(made found) (KeyInfo, error) {
	f, err := s.match(KeyRef{Label: made.label, ID: made.id})
	if err != nil {
		return KeyInfo{}, err
	}
	if f.algorithm != made.algorithm {
		return KeyInfo{}, fmt.Errorf("%w: asked for %s, the token made %s", ErrWeakKey, made.algorithm, f.algorithm)
	}
	info, err := s.describe(f)
	if err != nil {
		return KeyInfo{}, err
	}
	if err := info.fresh(); err != nil {
		return KeyInfo{}, err
	}
	// The pair's consistency. The text is no log's checkpoint.
	input, hash := []byte("bulla: a new key signs this once to show that it can"), crypto.Hash(0)
	if f.algorithm != Ed25519 {
		digest := sha256.Sum256(input)
		input, hash = digest[:], crypto.SHA256
	}
	sig, err := s.rawSign(f.private, f.pub, input, hash)
	if err != nil {
		return KeyInfo{}, err
	}
	if !verify(f.pub, input, hash, sig) {
		return KeyInfo{}, fmt.Errorf("%w: the new pair does not belong together: %w", ErrWrongKey, errBadSignature)
	}
	return info, nil
}

// destroy removes both halves.
func (s *session) destroy(f found) error {
	var errs []error
	for _, object := range []pkcs11.ObjectHandle{f.private, f.public} {
		if err := s.t.module.lib.DestroyObject(s.handle, object); err != nil {
			errs = append(errs, call("C_DestroyObject", err))
		}
	}
	return errors.Join(errs...)
}

// Destroy removes the one key pair that matches, for good. The ref must pin the public key: nothing else says which key dies.
func (t *Token) Destroy(ctx context.Context, ref KeyRef) error {
	err := ref.check()
	if err == nil && len(ref.SPKISHA256) == 0 {
		err = errors.New("give the public key's SHA-256 to destroy a key")
	}
	if err == nil {
		t.change.Lock()
		defer t.change.Unlock()
		err = t.do(ctx, func(s *session) error {
			var f found
			if err := s.recover(func() (err error) {
				f, err = s.match(ref)
				return err
			}); err != nil {
				return err
			}
			return s.conclude(s.destroy(f))
		})
	}
	if err != nil {
		return fmt.Errorf("destroying key %s in token %s: %w", ref, t.cfg, err)
	}
	return nil
}
