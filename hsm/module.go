package hsm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

const (
	heartbeat  = time.Second            // between looks at healthy tokens
	firstPause = 100 * time.Millisecond // before a second attempt at recovery, doubling
	lastPause  = time.Second            // up to this
	drainTime  = 2 * time.Second        // for calls in flight to end before C_Finalize
	checkTime  = 5 * time.Second        // for a revived token to open a session and log in
	searchTime = 2 * time.Second        // between looks for a missing key with C_Initialize
)

// ModuleConfig names a PKCS#11 library.
type ModuleConfig struct {
	Path string // absolute path of the library
	Init string // initialisation string for pReserved, needed by NSS; empty for others
}

// Module is a PKCS#11 library in this process, and its supervisor: the one who initialises and finalises it.
type Module struct {
	path string
	init []byte         // NUL-terminated
	pins runtime.Pinner // of init: the library may keep the pointer
	lib  *pkcs11.Ctx
	gate gate
	wake chan struct{}

	restarting sync.Mutex // held by who shuts the gate
	// Changed only behind the shut gate, read inside it.
	generation  uint64 // counts C_Initialize; handles of another generation are not ours
	initialised bool

	reinits atomic.Uint64
	works   atomic.Bool  // a token has signed since the last trouble: pauses start small again
	missing atomic.Bool  // a key was not found where it had been
	last    atomic.Int64 // restart, Unix ns

	mu      sync.Mutex // guards the following
	refs    int
	tokens  []*Token
	refused map[identity]error // tokens that refused their PIN in this process
	stop    chan struct{}
	stopped chan struct{}
}

// loaded holds the libraries of this process: C keeps one state a library, so there is one Module a library, for the life of the process.
var loaded = struct {
	sync.Mutex
	modules map[string]*Module
}{modules: make(map[string]*Module)}

// Load loads and initialises a library, or shares it when this process has it already. Each Module returned needs a Close.
func Load(cfg ModuleConfig) (*Module, error) {
	if !filepath.IsAbs(cfg.Path) || strings.ContainsRune(cfg.Path, 0) {
		return nil, fmt.Errorf("loading PKCS#11 module %q: give the absolute path of the library (module-path)", cfg.Path)
	}
	if strings.ContainsRune(cfg.Init, 0) {
		return nil, fmt.Errorf("loading PKCS#11 module %s: module-init contains a NUL", cfg.Path)
	}
	path, err := filepath.EvalSymlinks(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("loading PKCS#11 module: %w", err)
	}

	loaded.Lock()
	defer loaded.Unlock()
	m := loaded.modules[path]
	if m == nil {
		if m, err = newModule(path); err != nil {
			return nil, err
		}
		loaded.modules[path] = m
	}
	if err := m.acquire(cfg.Init); err != nil {
		return nil, fmt.Errorf("loading PKCS#11 module %s: %w", path, err)
	}
	return m, nil
}

func newModule(path string) (*Module, error) {
	lib := pkcs11.New(path)
	if lib == nil {
		return nil, fmt.Errorf("loading PKCS#11 module %s: not a PKCS#11 library, or one whose dependencies are missing: try `pkcs11-tool --module %s -I`", path, path)
	}
	m := &Module{path: path, lib: lib, wake: make(chan struct{}, 1), refused: make(map[identity]error)}
	if err := m.gate.shut(0); err != nil { // opened by the first acquire
		return nil, err
	}
	return m, nil
}

// acquire counts a user of m; the first one initialises it.
func (m *Module) acquire(init string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	reserved := []byte(nil)
	if init != "" {
		reserved = append([]byte(init), 0)
	}
	if m.refs > 0 {
		if m.stop == nil {
			return errors.New("it could not be closed: a call into it has not returned")
		}
		if !slices.Equal(m.init, reserved) {
			return errors.New("it is in use with another module-init: give all its URIs the same")
		}
		m.refs++
		return nil
	}
	m.pins.Unpin()
	if m.init = reserved; reserved != nil {
		m.pins.Pin(&reserved[0])
	}
	if err := m.initialise(); err != nil {
		return fmt.Errorf("%w (is the module configured? SoftHSM reads SOFTHSM2_CONF, NSS needs module-init)", err)
	}
	m.refs = 1
	m.gate.open()
	m.stop, m.stopped = make(chan struct{}), make(chan struct{})
	go m.supervise(m.stop, m.stopped)
	return nil
}

// Close gives the module back. The last user's Close closes its tokens and finalises the library, waiting a bounded time for calls
// in flight; a library with a call that does not return is left as it is, with an error.
func (m *Module) Close() error {
	loaded.Lock()
	defer loaded.Unlock()
	m.mu.Lock()
	if m.refs == 0 {
		m.mu.Unlock()
		return ErrClosed
	}
	if m.refs > 1 {
		m.refs--
		m.mu.Unlock()
		return nil
	}
	if m.stop != nil { // nil when an earlier Close failed
		close(m.stop)
		m.stop = nil
	}
	m.mu.Unlock()
	if err := m.shutDown(); err != nil {
		return fmt.Errorf("closing PKCS#11 module %s: %w", m.path, err)
	}
	return nil
}

func (m *Module) shutDown() error {
	for _, t := range m.opened() {
		if err := t.Close(); err != nil && !errors.Is(err, ErrClosed) {
			return err
		}
	}
	select {
	case <-m.stopped:
	case <-time.After(drainTime + checkTime):
		return errCallsInside
	}
	m.restarting.Lock()
	defer m.restarting.Unlock()
	if err := m.gate.shut(drainTime); err != nil {
		return err
	}
	m.mu.Lock()
	m.refs = 0
	m.mu.Unlock()
	return m.finalise() // the gate stays shut
}

// initialise and finalise are called behind the shut gate.
func (m *Module) initialise() error {
	m.generation++
	var options []pkcs11.InitializeOption
	if m.init != nil {
		options = append(options, pkcs11.InitializeWithReserved(unsafe.Pointer(&m.init[0])))
	}
	if err := m.lib.Initialize(options...); err != nil {
		return call("C_Initialize", err)
	}
	m.initialised = true
	return nil
}

func (m *Module) finalise() error {
	m.initialised = false
	err := m.lib.Finalize()
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		return nil
	}
	return call("C_Finalize", err)
}

// supervise looks after the module's tokens until stop is closed: at a heartbeat while they are well, at once when a session reports
// trouble, and at growing pauses until it is over.
func (m *Module) supervise(stop <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	pause := firstPause
	var trouble time.Time // when a token was last found ill
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-m.wake:
			if wait := pause - time.Since(trouble); wait > 0 {
				timer.Reset(wait)
				continue
			}
		case <-timer.C:
		}
		if m.tend() {
			timer.Reset(heartbeat)
			continue
		}
		if m.works.Swap(false) {
			pause = firstPause
		}
		trouble = time.Now()
		timer.Reset(pause)
		pause = min(2*pause, lastPause)
	}
}

// summon has the supervisor look now.
func (m *Module) summon() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// tend probes every token, re-initialises the library if one is lost, and revives those that are back. It reports whether it found
// all of them well.
func (m *Module) tend() bool {
	tokens := m.opened()
	well, lost := true, false
	for _, t := range tokens {
		switch t.probe() {
		case probeLost:
			lost = true
			fallthrough
		case probeDown:
			well = false
		case probeWell:
		}
	}
	// A key restored after its token is seen by some libraries only after C_Initialize. The other keys need not suffer for that.
	if !lost && time.Since(time.Unix(0, m.last.Load())) >= searchTime {
		lost = m.missing.Swap(false)
	}
	if lost {
		err := m.restart()
		if errors.Is(err, errCallsInside) {
			return false // the others keep their sessions
		}
		if err != nil {
			for _, t := range tokens {
				t.setDown(err, true)
			}
			return false
		}
	}
	for _, t := range tokens {
		t.revive()
	}
	return well
}

// restart finalises and initialises the library and finds its tokens' slots again, while no call is in flight and none can begin.
// Calls that come meanwhile wait at the gate; those of tokens that are well notice nothing else.
func (m *Module) restart() error {
	m.restarting.Lock()
	defer m.restarting.Unlock()
	if !m.inUse() {
		return ErrClosed
	}
	for _, t := range m.opened() {
		if t.stuck() > 0 {
			return errCallsInside // why have everybody wait for it
		}
	}
	if err := m.gate.shut(drainTime); err != nil {
		return err
	}
	defer m.gate.open()
	m.reinits.Add(1)
	m.last.Store(time.Now().UnixNano())
	if err := m.finalise(); err != nil {
		return err
	}
	if err := m.initialise(); err != nil {
		return err
	}
	for _, t := range m.opened() {
		slot, _, err := m.locate(t.identity.matches)
		if err != nil {
			t.setDown(err, true)
			continue
		}
		t.slot = slot
		t.found()
	}
	return nil
}

// inUse is false from the last Close on.
func (m *Module) inUse() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stop != nil
}

// opened returns the tokens in use.
func (m *Module) opened() []*Token {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.tokens)
}

// locate finds the slot of the one token that matches. Slot numbers change when a token is initialised, so they are never kept
// across C_Initialize. The caller is inside the gate or has shut it.
func (m *Module) locate(matches func(pkcs11.TokenInfo) bool) (uint, pkcs11.TokenInfo, error) {
	var slot uint
	var token pkcs11.TokenInfo
	if !m.initialised {
		return 0, token, &Error{Call: "C_GetSlotList", Code: pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED}
	}
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return 0, token, call("C_GetSlotList", err)
	}
	found := 0
	for _, s := range slots {
		info, err := m.lib.GetTokenInfo(s)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 || !matches(info) {
			continue // another slot's trouble is not ours
		}
		slot, token = s, info
		found++
	}
	if found != 1 {
		return 0, token, fmt.Errorf("%w: %d of %d slots match", ErrNoToken, found, len(slots))
	}
	return slot, token, nil
}

// Token finds a token, opens a first session and logs in. The PIN is tried once.
func (m *Module) Token(ctx context.Context, cfg TokenConfig) (*Token, error) {
	t, err := m.openToken(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening token %s: %w", cfg, err)
	}
	return t, nil
}
