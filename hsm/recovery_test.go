package hsm_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"bulla/hsm"
)

var digest = make([]byte, 32)

// sign signs digest with an ECDSA P-256 key and checks what it gets.
func sign(k *hsm.Key) error {
	sig, err := k.Sign(rand.Reader, digest, crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest, sig) {
		return errors.New("a signature was returned that does not verify")
	}
	return err
}

// heals waits until k signs again.
func heals(t *testing.T, k *hsm.Key) {
	t.Helper()
	var last error
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if last = sign(k); last == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it does not heal within 5 s: %v", last)
		}
	}
}

// Each row injects one fault and says what the caller of Sign sees. Afterwards, with the fault gone, the same key signs within 5 s.
func TestRecovery(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN), Sessions: 1})
	if err != nil {
		t.Fatal(err)
	}
	k := generate(t, tok, hsm.ECDSAP256, "log")

	const always = -1
	var any = errors.New("some error that is not ErrUnavailable")
	type row struct {
		function int
		mode     uint64
		count    int64
		code     uint64
		want     error // nil: the caller notices nothing
	}
	rows := []row{
		// retry once, then suspect the session, then the token
		{cSignInit, fail, 1, pkcs11.CKR_GENERAL_ERROR, nil},
		{cSign, fail, 1, pkcs11.CKR_GENERAL_ERROR, nil},
		{cSign, failAfter, 1, pkcs11.CKR_FUNCTION_FAILED, nil},
		{cSignInit, fail, 2, pkcs11.CKR_GENERAL_ERROR, nil},
		{cSignInit, fail, always, pkcs11.CKR_GENERAL_ERROR, hsm.ErrUnavailable},
		{cSign, fail, always, 0x80000005, hsm.ErrUnavailable},
		// a refused key
		{cSignInit, fail, always, pkcs11.CKR_MECHANISM_INVALID, any},
		{cSignInit, fail, always, pkcs11.CKR_MECHANISM_PARAM_INVALID, any},
		{cSignInit, fail, always, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, any},
		{cSignInit, fail, always, pkcs11.CKR_KEY_TYPE_INCONSISTENT, any},
		{cSign, fail, always, 0x1B, any},
		// signatures by another key
		{cSign, corrupt, 2, 0, nil}, // C_Sign is called twice: for the length and for the bytes
		{cSign, corrupt, always, 0, hsm.ErrWrongKey},
	}
	for _, code := range []uint64{pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN} {
		for _, function := range []int{cSignInit, cSign} {
			rows = append(rows, row{function, fail, 1, code, nil}, row{function, failAfter, 1, code, nil}, row{function, fail, always, code, hsm.ErrUnavailable})
		}
	}
	for _, code := range []uint64{pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID} {
		rows = append(rows, row{cSignInit, fail, 1, code, hsm.ErrUnavailable}, row{cSign, failAfter, 1, code, hsm.ErrUnavailable})
	}
	for _, r := range rows {
		t.Run(fmt.Sprintf("%d mode %d %dx 0x%X", r.function, r.mode, r.count, r.code), func(t *testing.T) {
			t.Cleanup(f.clear)
			f.set(r.function, r.mode, r.count, r.code)
			err := sign(k)
			switch {
			case r.want == nil && err != nil:
				t.Errorf("signing: %v", err)
			case r.want == any && (err == nil || errors.Is(err, hsm.ErrUnavailable)):
				t.Errorf("signing: %v, want an error that says not to ask again", err)
			case r.want != any && !errors.Is(err, r.want):
				t.Errorf("signing: %v, want %v", err, r.want)
			}
			f.clear()
			heals(t, k)
		})
	}
	if n := f.calls(cLogin); n != tok.Health().Logins {
		t.Errorf("%d logins counted, %d happened", tok.Health().Logins, n)
	}
}

// Every other call fails in turn, with each class of error, while the session is opened anew: no crash, no wrong signature, and it heals.
func TestRecoveryOfSessions(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN)})
	if err != nil {
		t.Fatal(err)
	}
	k := generate(t, tok, hsm.ECDSAP256, "log")
	for _, function := range []int{cInitialize, cFinalize, cGetSlotList, cGetTokenInfo, cOpenSession, cGetSessionInfo, cLogin, cGetAttributeValue, cFindObjectsInit, cFindObjects, cFindObjectsFinal} {
		for _, code := range []uint64{pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_DEVICE_REMOVED} {
			t.Run(fmt.Sprintf("%d 0x%X", function, code), func(t *testing.T) {
				t.Cleanup(f.clear)
				f.set(function, fail, 1, code)
				f.set(cSignInit, fail, 1, pkcs11.CKR_DEVICE_ERROR) // begins it
				if err := sign(k); !errors.Is(err, hsm.ErrUnavailable) {
					t.Fatalf("signing: %v", err)
				}
				heals(t, k)
			})
		}
	}
}

// pressure is goroutines that sign until it ends, and count.
type pressure struct {
	stop           chan struct{}
	done           sync.WaitGroup
	signed, failed atomic.Int64
	slowest        atomic.Int64 // refusal, ns
	unexpected     chan error
}

func press(n int, k *hsm.Key) *pressure {
	p := &pressure{stop: make(chan struct{}), unexpected: make(chan error, n)}
	for range n {
		p.done.Go(func() {
			for {
				select {
				case <-p.stop:
					return
				default:
				}
				begun := time.Now()
				err := sign(k)
				switch {
				case err == nil:
					p.signed.Add(1)
				case errors.Is(err, hsm.ErrUnavailable):
					p.failed.Add(1)
					p.slowest.Store(max(p.slowest.Load(), int64(time.Since(begun))))
					time.Sleep(time.Millisecond)
				default:
					p.unexpected <- err
					return
				}
			}
		})
	}
	return p
}

func (p *pressure) end(t *testing.T) {
	t.Helper()
	close(p.stop)
	p.done.Wait()
	select {
	case err := <-p.unexpected:
		t.Errorf("under load: %v", err)
	default:
	}
	t.Logf("%d signatures, %d refusals, the slowest after %v", p.signed.Load(), p.failed.Load(), time.Duration(p.slowest.Load()))
}

// progress waits for more signatures.
func (p *pressure) progress(t *testing.T, within time.Duration) {
	t.Helper()
	from := p.signed.Load()
	eventually(t, within, "signing goes on", func() bool { return p.signed.Load() > from+20 })
}

func TestTokenDirectoryAway(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, _ := faulty(t)
	label := newToken(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
	if err != nil {
		t.Fatal(err)
	}
	k := generate(t, tok, hsm.ECDSAP256, "log")
	dir := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	p := press(4, k)
	for round := range 3 {
		p.progress(t, 5*time.Second)
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, "signing is refused", func() bool { return tok.Health().State == hsm.Down })
		for range 10 {
			begun := time.Now()
			if err := sign(k); !errors.Is(err, hsm.ErrUnavailable) {
				t.Fatalf("signing without a token: %v", err)
			}
			if d := time.Since(begun); d > 500*time.Millisecond {
				t.Errorf("the refusal took %v", d)
			}
		}
		if round == 1 { // into the longest pauses
			reinits := tok.Health().Reinits
			eventually(t, 10*time.Second, "the supervisor tries", func() bool { return tok.Health().Reinits > reinits+4 })
		}
		if round < 2 {
			err = os.Rename(dir+".away", dir)
		} else { // restored from a backup: other inodes
			err = os.CopyFS(dir, os.DirFS(dir+".away"))
		}
		if err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		p.progress(t, 5*time.Second)
		t.Logf("healed %v after the directory's return", time.Since(back))
	}
	p.end(t)
	if h := tok.Health(); h.Reinits == 0 || h.State != hsm.Ready || h.Error != "" {
		t.Errorf("health: %+v", h)
	}
}

// saboteur is another user of the library in this process, who follows no rules.
func saboteur(t *testing.T, label string) (lib *pkcs11.Ctx, slot uint) {
	t.Helper()
	lib = pkcs11.New(softHSM)
	slots, err := lib.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range slots {
		if info, err := lib.GetTokenInfo(s); err == nil && info.Label == label {
			return lib, s
		}
	}
	t.Fatal("no such token")
	return nil, 0
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSabotageUnderLoad(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	label := newToken(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN), Sessions: 4})
	if err != nil {
		t.Fatal(err)
	}
	k := generate(t, tok, hsm.ECDSAP256, "log")
	lib, slot := saboteur(t, label)
	p := press(8, k)
	for range 20 {
		p.progress(t, 5*time.Second)
		f.quietly(t, func() { must(t, lib.CloseAllSessions(slot)) })
		p.progress(t, 5*time.Second)
		f.quietly(t, func() {
			session, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			must(t, err)
			must(t, lib.Logout(session))
			must(t, lib.CloseSession(session))
		})
	}
	p.progress(t, 5*time.Second)
	p.end(t)
	t.Logf("%+v", tok.Health())
	if h := tok.Health(); h.Logins < 20 || h.Logins != f.calls(cLogin) {
		t.Errorf("%d logins", h.Logins)
	}
}

// The library is finalised and initialised behind our back, and then the numbers of our session and handles belong to another's
// session and to the other key: C_Sign succeeds, with the wrong key.
func TestStaleHandleNeverSignsWithAnotherKey(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	label := newToken(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN), Sessions: 1})
	if err != nil {
		t.Fatal(err)
	}
	a := generate(t, tok, hsm.ECDSAP256, "a")
	b := generate(t, tok, hsm.ECDSAP256, "b")
	for round := range 8 {
		f.quietly(t, func() {
			lib, _ := saboteur(t, label)
			must(t, lib.Finalize())
			must(t, lib.Initialize())
			lib, slot := saboteur(t, label)
			session, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			must(t, err)
			must(t, lib.Login(session, pkcs11.CKU_USER, userPIN))
			// Numbers are given out in the order of finding. Swap it from round to round.
			order := []string{"a", "b"}
			if round%2 == 0 {
				order = []string{"b", "a"}
			}
			for _, l := range order {
				for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
					must(t, lib.FindObjectsInit(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, l)}))
					_, _, err := lib.FindObjects(session, 1)
					must(t, err)
					must(t, lib.FindObjectsFinal(session))
				}
			}
		})
		for _, k := range []*hsm.Key{a, b} {
			heals(t, k) // it verifies each signature under k's own key
		}
	}
	if n := tok.Health().Stale; n == 0 {
		t.Error("no handle was ever stale in the dangerous way: the test proves nothing")
	}
}

func TestHungCall(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, f := faulty(t)
	tok, err := load(t, hsm.ModuleConfig{Path: path}).Token(t.Context(), hsm.TokenConfig{Label: newToken(t), PIN: pin(userPIN), Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	k := generate(t, tok, hsm.ECDSAP256, "log")
	f.set(cSign, hang, -1, 0)
	t.Cleanup(f.clear)
	for range 2 { // each takes a session
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		begun := time.Now()
		_, err := k.SignContext(ctx, digest, crypto.SHA256)
		cancel()
		if !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("signing: %v", err)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("it took %v", d)
		}
	}
	eventually(t, 2*time.Second, "both sessions are stuck", func() bool { return tok.Health().Stuck == 2 })
	begun := time.Now()
	for range 1000 {
		if err := sign(k); !errors.Is(err, hsm.ErrUnavailable) {
			t.Fatalf("signing: %v", err)
		}
	}
	if d := time.Since(begun); d > time.Second {
		t.Errorf("1000 refusals took %v", d)
	}
	if n := f.held(); n != 2 {
		t.Errorf("%d calls hang, want 2", n)
	}
	// A library that must be re-initialised cannot be, with calls inside; nothing else waits for that.
	f.set(cGetTokenInfo, fail, -1, pkcs11.CKR_GENERAL_ERROR)
	eventually(t, 5*time.Second, "the token is down", func() bool { return tok.Health().State == hsm.Down })
	f.set(cGetTokenInfo, 0, 0, 0)
	f.set(cSign, 0, 0, 0)
	heals(t, k)
	if n := tok.Health().Stuck; n != 0 {
		t.Errorf("%d sessions are still stuck", n)
	}
}
