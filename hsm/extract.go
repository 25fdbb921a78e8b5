package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// throwaway labels the extraction test's key; nothing else may have that label.
const throwaway = "bulla extraction test"

// Attempt is one way in which [Token.TryExtract] tried to get a key out, and what came of it.
type Attempt struct {
	Way    string `json:"way"`
	Result string `json:"result"`
	Leaked bool   `json:"leaked"`
}

// TryExtract is a module's commissioning test: flags are claims, so it makes a throwaway key of algorithm a ("" for ECDSA P-256)
// exactly as Generate does and tries to get it out: read its secret parts, clear its flags, copy it without them, wrap it under an AES
// key whose value we know in every way of wrapping that the module lists. It returns all attempts, and [ErrExtractable] when one
// succeeded. The key is destroyed; one left behind by a crash is destroyed by the next test. Success proves that these ways are
// closed, not that none is open.
func (t *Token) TryExtract(ctx context.Context, a Algorithm) ([]Attempt, error) {
	attempts, err := t.tryExtract(ctx, a)
	if err != nil {
		return attempts, fmt.Errorf("trying to extract a key from token %s: %w", t.cfg, err)
	}
	return attempts, nil
}

func (t *Token) tryExtract(ctx context.Context, a Algorithm) ([]Attempt, error) {
	algorithm, sch, err := parseAlgorithm(a)
	if err != nil {
		return nil, err
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	t.change.Lock()
	defer t.change.Unlock()
	result := make(chan []Attempt, 1)
	err = t.do(ctx, func(s *session) (err error) {
		if err := s.recover(s.destroyThrowaways); err != nil {
			return err
		}
		defer func() { err = s.conclude(errors.Join(err, s.destroyThrowaways())) }()
		f, err := s.generate(algorithm, sch, throwaway)
		if err != nil {
			return err
		}
		if _, err := s.accept(f); err != nil {
			return err
		}
		x := extraction{s: s, key: f}
		if err := x.run(); err != nil {
			return err
		}
		result <- x.attempts
		return nil
	})
	if err != nil {
		return nil, err
	}
	attempts := <-result
	var leaks []string
	for _, a := range attempts {
		if a.Leaked {
			leaks = append(leaks, a.Way+" "+a.Result)
		}
	}
	if leaks != nil {
		return attempts, fmt.Errorf("%w: %s; do not use it for a log's key", ErrExtractable, strings.Join(leaks, "; "))
	}
	return attempts, nil
}

// destroyThrowaways destroys this and earlier tests' keys.
func (s *session) destroyThrowaways() error {
	const limit = 16
	for {
		old, err := s.find(limit, pkcs11.NewAttribute(pkcs11.CKA_LABEL, throwaway))
		if err != nil || len(old) == 0 {
			return err
		}
		for _, object := range old {
			if err := s.t.module.lib.DestroyObject(s.handle, object); err != nil {
				return call("C_DestroyObject", err)
			}
		}
	}
}

// extraction is one test under way.
type extraction struct {
	s        *session
	key      found
	attempts []Attempt
}

// run makes the attempts, and then has the key sign: refusals by a token that has gone away prove nothing.
func (x *extraction) run() error {
	for _, step := range []func() error{x.read, x.change, x.copy, x.wrap, x.read} {
		if err := step(); err != nil {
			return err
		}
	}
	_, err := x.s.accept(x.key)
	if errors.Is(err, ErrWeakKey) {
		x.note("clearing its flags", err.Error(), true)
		return nil
	}
	return err
}

func (x *extraction) note(way, result string, leaked bool) {
	x.attempts = append(x.attempts, Attempt{Way: way, Result: result, Leaked: leaked})
}

// refused notes a refusal. An error that says nothing about the key ends the test.
func (x *extraction) refused(way string, err error) error {
	switch remedyFor(err) {
	case giveUp, retry:
		x.note(way, "refused: "+err.Error(), false)
		return nil
	}
	return unavailable(fmt.Errorf("%s: %w", way, err))
}

// secretParts are the attributes that hold a private key, by name, for all our algorithms.
var secretParts = []struct {
	name      string
	attribute uint
	rsa       bool
}{
	{"CKA_VALUE", pkcs11.CKA_VALUE, false},
	{"CKA_PRIVATE_EXPONENT", pkcs11.CKA_PRIVATE_EXPONENT, true},
	{"CKA_PRIME_1", pkcs11.CKA_PRIME_1, true},
}

func (x *extraction) read() error {
	for _, part := range secretParts {
		if part.rsa != (x.key.algorithm == RSA3072PSS) {
			continue
		}
		way := "reading " + part.name
		value, err := x.s.attribute(x.key.private, part.attribute)
		if err != nil {
			if err := x.refused(way, err); err != nil {
				return err
			}
			continue
		}
		n := len(value)
		clear(value)
		x.note(way, fmt.Sprintf("gave %d bytes", n), n > 0)
	}
	return nil
}

// openedAttributes are those of a key that may leave.
func openedAttributes() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true)}
}

// change tries to clear the flags one by one; what counts is how they read afterwards.
func (x *extraction) change() error {
	for i, name := range []string{"CKA_SENSITIVE", "CKA_EXTRACTABLE"} {
		way := "changing " + name
		if err := x.s.t.module.lib.SetAttributeValue(x.s.handle, x.key.private, openedAttributes()[i:i+1]); err != nil {
			if err := x.refused(way, call("C_SetAttributeValue", err)); err != nil {
				return err
			}
			continue
		}
		if err := x.judge(way, x.key.private); err != nil {
			return err
		}
	}
	return nil
}

// copy tries to make a copy that may leave.
func (x *extraction) copy() error {
	const way = "copying it as extractable"
	template := append(openedAttributes(), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false))
	duplicate, err := x.s.t.module.lib.CopyObject(x.s.handle, x.key.private, template)
	if err != nil {
		return x.refused(way, call("C_CopyObject", err))
	}
	return x.judge(way, duplicate)
}

// judge notes what a change that the module accepted really did.
func (x *extraction) judge(way string, object pkcs11.ObjectHandle) error {
	f := x.key
	f.private = object
	info, err := x.s.describe(f)
	if err != nil {
		return err
	}
	if err := info.guarded(); err != nil {
		x.note(way, "worked: "+err.Error(), true)
		return nil
	}
	x.note(way, "accepted, without effect", false)
	return nil
}

// wrap tries every way of wrapping under AES that the module lists, whatever the flags of its list say.
func (x *extraction) wrap() error {
	lib := x.s.t.module.lib
	listed, err := lib.GetMechanismList(x.s.t.slot)
	if err != nil {
		return unavailable(call("C_GetMechanismList", err))
	}
	wrapping, err := x.wrappingKey()
	if err != nil || wrapping == 0 {
		return err
	}
	tried := false
	for _, m := range []struct {
		name  string
		mech  uint
		param any
	}{
		{"AES-CBC-PAD", pkcs11.CKM_AES_CBC_PAD, make([]byte, 16)},
		{"AES-CBC", pkcs11.CKM_AES_CBC, make([]byte, 16)},
		{"AES-ECB", pkcs11.CKM_AES_ECB, nil},
		{"AES-KEY-WRAP", pkcs11.CKM_AES_KEY_WRAP, nil},
		{"AES-KEY-WRAP-PAD", pkcs11.CKM_AES_KEY_WRAP_PAD, nil},
		{"AES-KEY-WRAP-KWP", ckmAESKeyWrapKWP, nil},
		{"AES-KEY-WRAP-PKCS7", ckmAESKeyWrapPKCS7, nil},
	} {
		if !slices.ContainsFunc(listed, func(l *pkcs11.Mechanism) bool { return l.Mechanism == m.mech }) {
			continue
		}
		tried = true
		way := "wrapping by " + m.name
		blob, err := lib.WrapKey(x.s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.mech, m.param)}, wrapping, x.key.private)
		if err = call("C_WrapKey", err); codeOf(err) == pkcs11.CKR_BUFFER_TOO_SMALL {
			x.note(way, "was not refused: "+err.Error(), true) // NSS asks for more room than it said it needs
			continue
		}
		if err != nil {
			if err := x.refused(way, err); err != nil {
				return err
			}
			continue
		}
		x.note(way, fmt.Sprintf("gave %d bytes", len(blob)), true)
	}
	if !tried {
		x.note("wrapping", "not tried: the module lists no AES mechanism", false)
	}
	return nil
}

// wrappingKey imports an AES key that we know, a session object; where import is refused it asks for one that both wraps and decrypts,
// which gives a wrapped key away as well. 0 without error means that there is none to be had.
func (x *extraction) wrappingKey() (pkcs11.ObjectHandle, error) {
	value := make([]byte, 32)
	rand.Read(value) // never fails
	attribute := pkcs11.NewAttribute
	common := []*pkcs11.Attribute{
		attribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_SECRET_KEY)), attribute(pkcs11.CKA_KEY_TYPE, uint(pkcs11.CKK_AES)), attribute(pkcs11.CKA_LABEL, throwaway),
		attribute(pkcs11.CKA_TOKEN, false), attribute(pkcs11.CKA_WRAP, true),
	}
	lib := x.s.t.module.lib
	key, err := lib.CreateObject(x.s.handle, append(common, attribute(pkcs11.CKA_VALUE, value)))
	if err == nil {
		return key, nil
	}
	if err := x.refused("importing an AES key to wrap with", call("C_CreateObject", err)); err != nil {
		return 0, err
	}
	key, err = lib.GenerateKey(x.s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
		append(common, attribute(pkcs11.CKA_VALUE_LEN, uint(len(value))), attribute(pkcs11.CKA_DECRYPT, true)))
	if err == nil {
		return key, nil
	}
	return 0, x.refused("generating an AES key that wraps and decrypts", call("C_GenerateKey", err))
}
