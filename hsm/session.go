package hsm

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// A session is used by one goroutine only, inside the module's gate.
type session struct {
	t *Token
	w *worker

	handle     pkcs11.SessionHandle
	open       bool
	generation uint64 // of the module, in which handle and keys mean something
	epoch      uint64 // of the login, in which keys mean something
	loggedIn   bool   // as last seen; false has ready ask
	keys       map[pin]pkcs11.ObjectHandle
}

var errBadSignature = errors.New("the token's signature does not verify under the pinned key")

// recover runs op, which must be safe to repeat, and mends what its errors show to be broken: session, login, handles. What takes
// the whole library is left to the supervisor, and the caller told at once.
func (s *session) recover(op func() error) error {
	const attempts = 5
	var retried, wrong int
	for n := 1; ; n++ {
		err := s.ready()
		if err == nil {
			err = op()
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, errBadSignature) {
			s.t.stale.Add(1)
			if wrong++; wrong == 2 {
				return fmt.Errorf("%w: %w", ErrWrongKey, err)
			}
		}
		switch todo := remedyFor(err); {
		case errors.Is(err, ErrUnavailable):
			return err // decided already
		case todo == reinitialise:
			return s.lost(err)
		case todo == giveUp:
			return err
		case n == attempts:
			return s.doubtful(err)
		case todo == reopen:
			s.close()
		case todo == relogin, todo == refind:
			s.loggedIn, s.keys = false, nil
		case todo == retry:
			// Twice may be the session, more often the token.
			if retried++; retried == 2 {
				s.close()
			}
			if retried > 2 {
				return s.doubtful(err)
			}
		}
	}
}

// lost hands the token to the supervisor.
func (s *session) lost(cause error) error {
	s.t.setDown(cause, true)
	s.t.module.summon()
	return unavailable(cause)
}

// doubtful decides what an error means that mending did not end: ask the token whether it is there.
func (s *session) doubtful(cause error) error {
	if err := s.t.present(); err != nil {
		return s.lost(err)
	}
	return unavailable(cause)
}

// absent decides what it means that an object is not to be seen: nobody was logged in when it was looked for, the token is away, or cause.
func (s *session) absent(cause error) error {
	s.t.login.Lock() // not amid another session's login
	in, err := s.isLoggedIn()
	since := s.t.epoch.Load()
	s.t.login.Unlock()
	if err != nil {
		return err
	}
	if !in || since != s.epoch {
		return &Error{Call: "C_FindObjects", Code: pkcs11.CKR_USER_NOT_LOGGED_IN}
	}
	if err := s.t.present(); err != nil {
		return s.lost(err)
	}
	return cause
}

// conclude is for operations that are not repeated: it tells apart what a later attempt may not meet again.
func (s *session) conclude(err error) error {
	if err == nil || errors.Is(err, ErrWrongKey) || errors.Is(err, ErrUnavailable) {
		return err
	}
	switch remedyFor(err) {
	case giveUp:
		return err
	case reinitialise:
		return s.lost(err)
	}
	return s.doubtful(err)
}

// ready has the session open and the user logged in.
func (s *session) ready() error {
	m := s.t.module
	if !m.initialised {
		return &Error{Call: "C_OpenSession", Code: pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED}
	}
	if s.open && s.generation != m.generation {
		s.forget() // not closed: the number may be another's session by now
	}
	if !s.open {
		handle, err := m.lib.OpenSession(s.t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return call("C_OpenSession", err)
		}
		if s.generation != 0 {
			s.t.reopened.Add(1)
		}
		s.handle, s.open, s.generation = handle, true, m.generation
		s.w.open.Store(true)
	}
	if !s.loggedIn {
		if err := s.login(); err != nil {
			return err
		}
		s.loggedIn, s.keys = true, nil
	}
	if epoch := s.t.epoch.Load(); s.epoch != epoch || s.keys == nil {
		s.epoch, s.keys = epoch, make(map[pin]pkcs11.ObjectHandle)
	}
	return nil
}

// check is the job that proves a token ready. It finishes the token's opening and its revival.
func (s *session) check() error {
	return s.recover(func() error { return s.t.present() })
}

// login logs the user in unless the session's state says that it is. That state is the only witness: private keys can be visible
// without login, and C_Login's CKR_USER_ALREADY_LOGGED_IN says nothing about the PIN.
func (s *session) login() error {
	t := s.t
	t.login.Lock()
	defer t.login.Unlock()
	in, err := s.isLoggedIn()
	if err != nil {
		return err
	}
	if in && t.epoch.Load() > 0 {
		return nil
	}
	if in { // by whom? The PIN has proved nothing yet
		if err := t.module.lib.Logout(s.handle); err != nil {
			return call("C_Logout", err)
		}
	}
	if err := s.mayLogin(); err != nil {
		return err
	}
	if err := s.givePIN(); err != nil {
		return err
	}
	if in, err = s.isLoggedIn(); err != nil {
		return err
	}
	if !in {
		return unavailable(errors.New("the token took the PIN and is not logged in"))
	}
	t.epoch.Add(1)
	return nil
}

func (s *session) isLoggedIn() (bool, error) {
	info, err := s.t.module.lib.GetSessionInfo(s.handle)
	if err != nil {
		return false, call("C_GetSessionInfo", err)
	}
	return info.State == pkcs11.CKS_RW_USER_FUNCTIONS, nil
}

// mayLogin refuses to risk a PIN that was refused before, or the last try before the token locks.
func (s *session) mayLogin() error {
	t := s.t
	t.module.mu.Lock()
	refused := t.module.refused[t.identity]
	t.module.mu.Unlock()
	if refused != nil {
		return refused
	}
	if err := t.present(); err != nil {
		return err
	}
	info, err := t.module.lib.GetTokenInfo(t.slot)
	if err != nil {
		return call("C_GetTokenInfo", err)
	}
	switch {
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		err = fmt.Errorf("%w: the user's PIN is locked; have the security officer set a new one, then restart", ErrPIN)
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		err = fmt.Errorf("%w: one try is left before the token locks; log in by hand with the right PIN, then restart", ErrPIN)
	default:
		return nil
	}
	t.setFailed(err)
	return err
}

// givePIN calls C_Login, and never again in this process when the token says that the PIN is wrong.
func (s *session) givePIN() error {
	t := s.t
	pin, err := t.cfg.PIN()
	defer clear(pin)
	if err == nil && len(pin) == 0 {
		err = errors.New("it is empty")
	}
	proven := t.epoch.Load() > 0
	if err != nil {
		if proven {
			return unavailable(fmt.Errorf("getting the PIN: %w", err))
		}
		return fmt.Errorf("%w: %w", ErrNoPIN, err)
	}
	t.logins.Add(1)
	// Login copies the string; one that shares pin's memory is gone when pin is cleared.
	err = call("C_Login", t.module.lib.Login(s.handle, pkcs11.CKU_USER, unsafe.String(&pin[0], len(pin))))
	switch code := codeOf(err); {
	case proven && code == pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		return nil
	case pinRefused(code):
		err = fmt.Errorf("%w: it is not tried again; correct it and restart: %w", ErrPIN, err)
		t.setFailed(err)
	}
	return err
}

// close ends the session. The module's answer does not matter: what is closed may be dead.
func (s *session) close() {
	if s.open && s.generation == s.t.module.generation && s.t.module.initialised {
		_ = s.t.module.lib.CloseSession(s.handle)
	}
	s.forget()
}

func (s *session) forget() {
	s.open, s.loggedIn, s.keys = false, false, nil
	s.w.open.Store(false)
}

// find returns the handles of up to limit objects that match.
func (s *session) find(limit int, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	lib := s.t.module.lib
	if err := lib.FindObjectsInit(s.handle, template); err != nil {
		return nil, call("C_FindObjectsInit", err)
	}
	var found []pkcs11.ObjectHandle
	for len(found) < limit {
		some, _, err := lib.FindObjects(s.handle, limit-len(found))
		if err != nil {
			s.close() // and with it the search
			return nil, call("C_FindObjects", err)
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	if err := lib.FindObjectsFinal(s.handle); err != nil {
		return nil, call("C_FindObjectsFinal", err)
	}
	return found, nil
}

// attribute reads one attribute of an object.
func (s *session) attribute(object pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	got, err := s.t.module.lib.GetAttributeValue(s.handle, object, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil {
		return nil, call("C_GetAttributeValue", err)
	}
	if len(got) != 1 || got[0].Type != kind {
		return nil, fmt.Errorf("C_GetAttributeValue: no answer for attribute 0x%X", kind)
	}
	return got[0].Value, nil
}
