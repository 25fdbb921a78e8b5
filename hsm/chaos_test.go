package hsm_test

import (
	"errors"
	mathrand "math/rand/v2"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"bulla/hsm"
)

// Random faults in random calls, two tokens, goroutines that sign, look, make and destroy keys: no crash, no wrong signature, no
// session in two calls, and at the end all is well again. Run it with -count for longer.
func TestChaos(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	var keys []*hsm.Key
	var tokens []*hsm.Token
	for range 2 {
		tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN), Sessions: 3})
		must(t, err)
		tokens = append(tokens, tok)
		keys = append(keys, generate(t, tok, hsm.ECDSAP256, "log"))
	}
	pressures := []*pressure{press(4, keys[0]), press(4, keys[1])}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			tokens[0].Info(t.Context()) // fails as it must
			tokens[0].Health()
			info, err := tokens[0].Generate(t.Context(), hsm.ECDSAP256, "passing")
			if err == nil || errors.Is(err, hsm.ErrKeyExists) {
				err = destroyAll(t, tokens[0], "passing")
			}
			if errors.Is(err, hsm.ErrClosed) {
				stopped <- err
				return
			}
			_ = info
		}
	}()
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	functions := []int{cSignInit, cSignInit, cSign, cSign, cOpenSession, cGetSessionInfo, cLogin, cGetTokenInfo, cFindObjectsInit, cFindObjects, cFindObjectsFinal, cGetAttributeValue, cGenerateKeyPair}
	codes := []uint64{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_HOST_MEMORY}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(4 * time.Millisecond) {
		mode := uint64(fail)
		if random.IntN(2) == 0 {
			mode = failAfter
		}
		code := codes[random.IntN(len(codes))]
		if random.IntN(200) == 0 {
			code = pkcs11.CKR_DEVICE_ERROR
		}
		f.set(functions[random.IntN(len(functions))], mode, 1, code)
	}
	f.clear()
	close(stop)
	must(t, <-stopped)
	for i, p := range pressures {
		p.progress(t, 5*time.Second)
		p.end(t)
		t.Logf("%+v", tokens[i].Health())
	}
}

// destroyAll destroys what the label names, as long as it is one.
func destroyAll(t *testing.T, tok *hsm.Token, label string) error {
	k, err := tok.Key(t.Context(), hsm.KeyRef{Label: label})
	if err != nil {
		return err
	}
	return tok.Destroy(t.Context(), k.Ref())
}
