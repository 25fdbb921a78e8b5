package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// TokenConfig names a token and says how to log in.
type TokenConfig struct {
	Label        string // CKA_LABEL of the token; label or serial is required
	Serial       string // and the rest, where given, must match too
	Manufacturer string
	Model        string

	// PIN returns the user's PIN. It is called at every login, which a recovered token needs too; the bytes are zeroed after use.
	PIN func() ([]byte, error)

	Sessions int           // sessions and goroutines that use the token, as far as it allows; 0 means 2
	Timeout  time.Duration // for operations whose context has no deadline, and for a session to count as stuck; 0 means 5 s
}

const (
	defaultSessions = 2
	maxSessions     = 64
	defaultTimeout  = 5 * time.Second
)

// String names the token as in a URI.
func (c TokenConfig) String() string {
	return URI{Token: c.Label, Serial: c.Serial, Manufacturer: c.Manufacturer, Model: c.Model}.String()
}

func (c TokenConfig) matches(i pkcs11.TokenInfo) bool {
	for _, f := range []struct{ want, have string }{
		{c.Label, i.Label}, {c.Serial, i.SerialNumber}, {c.Manufacturer, i.ManufacturerID}, {c.Model, i.Model},
	} {
		if f.want != "" && f.want != f.have {
			return false
		}
	}
	return true
}

// identity is what must be the same of a token that comes back.
type identity struct{ label, serial, manufacturer, model string }

func identityOf(i pkcs11.TokenInfo) identity {
	return identity{i.Label, i.SerialNumber, i.ManufacturerID, i.Model}
}

func (id identity) matches(i pkcs11.TokenInfo) bool { return id == identityOf(i) }

// Token is a token we are logged in to. Its methods may be called concurrently. They return [ErrUnavailable] at once while the token
// is away, and work again when it is back.
type Token struct {
	module   *Module
	cfg      TokenConfig
	identity identity
	slot     uint // like Module.generation: changed behind the shut gate, read inside

	jobs    chan *job
	workers []*worker
	closing chan struct{}
	done    sync.WaitGroup

	login  sync.Mutex    // one login at a time
	epoch  atomic.Uint64 // counts logins: handles of private objects die with one
	change sync.Mutex    // one Generate, Destroy or TryExtract at a time

	logins, signatures, reopened, stale atomic.Uint64

	mu    sync.Mutex // guards the following
	state State
	since time.Time
	cause error // why it is not ready
	lost  bool  // the library must be re-initialised before the token is trusted
}

// State of a token.
type State string

const (
	opening State = "" // not yet given to anybody

	Ready  State = "ready"  // logged in, as far as anybody knows
	Down   State = "down"   // unavailable; the supervisor is trying
	Failed State = "failed" // the PIN was refused; only a restart tries it again
	Closed State = "closed"
)

// openToken is Module.Token without its error's context.
func (m *Module) openToken(ctx context.Context, cfg TokenConfig) (*Token, error) {
	if cfg.Label == "" && cfg.Serial == "" {
		return nil, errors.New("name it by token label or serial")
	}
	if cfg.PIN == nil {
		return nil, fmt.Errorf("%w: name its file with pin-source", ErrNoPIN)
	}
	if cfg.Sessions == 0 {
		cfg.Sessions = defaultSessions
	}
	if cfg.Sessions < 0 || cfg.Sessions > maxSessions {
		return nil, fmt.Errorf("%d sessions: allowed are 1 to %d", cfg.Sessions, maxSessions)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	t := &Token{module: m, cfg: cfg, jobs: make(chan *job), closing: make(chan struct{})}
	if err := t.search(ctx); err != nil {
		return nil, err
	}
	for _, w := range t.workers {
		t.done.Add(1)
		go t.work(w)
	}
	if err := t.submit(ctx, (*session).check); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.setReady()
	return t, nil
}

// search registers t. Some libraries see a token made since C_Initialize only after another; for that, calls in flight, such as the
// making of an RSA key, are waited for.
func (t *Token) search(ctx context.Context) error {
	ctx, cancel := patient(ctx)
	defer cancel()
	err := t.register(ctx)
	if !errors.Is(err, ErrNoToken) {
		return err
	}
	for {
		switch err := t.module.restart(); {
		case err == nil:
			return t.register(ctx)
		case !errors.Is(err, errCallsInside):
			return err
		}
		select {
		case <-time.After(firstPause):
		case <-ctx.Done():
			return unavailable(errCallsInside)
		}
	}
}

// register finds t's slot and claims it: one Token a token, since login is one for the process.
func (t *Token) register(ctx context.Context) error {
	m := t.module
	if !m.inUse() {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	if err := m.gate.enter(ctx); err != nil {
		return unavailable(err)
	}
	defer m.gate.leave()
	slot, info, err := m.locate(t.cfg.matches)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.slot, t.identity = slot, identityOf(info)
	if m.stop == nil {
		return ErrClosed
	}
	if err := m.refused[t.identity]; err != nil {
		return err
	}
	if slices.ContainsFunc(m.tokens, func(o *Token) bool { return o.identity == t.identity }) {
		return errors.New("it is open in this process: share its Token")
	}
	m.tokens = append(m.tokens, t)
	for range min(t.cfg.Sessions, sessionLimit(info)) {
		t.workers = append(t.workers, new(worker))
	}
	return nil
}

// sessionLimit is how many read-write sessions a token allows; 0 and ~0 say unlimited and unknown.
func sessionLimit(i pkcs11.TokenInfo) int {
	limit := maxSessions
	for _, n := range []uint{i.MaxSessionCount, i.MaxRwSessionCount} {
		if n != 0 && n < uint(limit) {
			limit = int(n)
		}
	}
	return limit
}

// Close ends the token's sessions, and with them the login. It waits a bounded time for calls in flight.
func (t *Token) Close() error {
	t.mu.Lock()
	if t.state == Closed {
		t.mu.Unlock()
		return ErrClosed
	}
	t.state, t.since, t.cause = Closed, time.Now(), ErrClosed
	t.mu.Unlock()
	close(t.closing)

	left := make(chan struct{})
	go func() { t.done.Wait(); close(left) }()
	select {
	case <-left:
	case <-time.After(drainTime + t.cfg.Timeout):
		return fmt.Errorf("closing token %s: %w", t.cfg, errCallsInside)
	}
	m := t.module
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens = slices.DeleteFunc(m.tokens, func(o *Token) bool { return o == t })
	return nil
}

// A job is one operation on its way through a session.
type job struct {
	ctx  context.Context // bounds waiting; a call into the module cannot be cancelled
	op   func(*session) error
	done chan error // buffered: nobody may be waiting any more
}

// worker is what others may see of a session's goroutine.
type worker struct {
	since atomic.Int64 // when it began its job, Unix ns; 0 when idle
	open  atomic.Bool  // has a session
}

func (t *Token) work(w *worker) {
	defer t.done.Done()
	s := &session{t: t, w: w}
	for {
		select {
		case <-t.closing:
			if t.module.gate.enter(context.Background()) == nil { // a shut gate opens within drainTime
				s.close()
				t.module.gate.leave()
			}
			return
		case j := <-t.jobs:
			w.since.Store(time.Now().UnixNano())
			err := t.module.gate.enter(j.ctx)
			if err != nil {
				err = unavailable(err)
			} else {
				err = j.op(s)
				t.module.gate.leave()
			}
			w.since.Store(0)
			j.done <- err
		}
	}
}

// do runs op in a session, at once refused while the token is not ready.
func (t *Token) do(ctx context.Context, op func(*session) error) error {
	t.mu.Lock()
	state, cause := t.state, t.cause
	t.mu.Unlock()
	switch {
	case state == Down:
		return unavailable(cause)
	case state != Ready:
		return cause
	case t.stuck() == len(t.workers):
		return unavailable(errCallsInside)
	}
	return t.submit(ctx, op)
}

func (t *Token) submit(ctx context.Context, op func(*session) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.cfg.Timeout)
		defer cancel()
	}
	j := &job{ctx: ctx, op: op, done: make(chan error, 1)}
	select {
	case t.jobs <- j:
	case <-t.closing:
		return ErrClosed
	case <-ctx.Done():
		return unavailable(fmt.Errorf("no session came free: %w", context.Cause(ctx)))
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return unavailable(fmt.Errorf("no answer from the token: %w", context.Cause(ctx)))
	}
}

// stuck counts the sessions whose job has lasted longer than the timeout.
func (t *Token) stuck() int {
	n := 0
	for _, w := range t.workers {
		if since := w.since.Load(); since != 0 && time.Since(time.Unix(0, since)) > t.cfg.Timeout {
			n++
		}
	}
	return n
}

func unavailable(cause error) error {
	if errors.Is(cause, ErrUnavailable) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, cause)
}

func (t *Token) setReady() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == opening || t.state == Down && !t.lost {
		t.state, t.since, t.cause = Ready, time.Now(), nil
	}
}

// setDown refuses operations until the supervisor has revived the token; lost asks it to re-initialise the library first.
func (t *Token) setDown(cause error, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != Ready && t.state != Down {
		return
	}
	if t.state == Ready {
		t.state, t.since = Down, time.Now()
	}
	t.cause, t.lost = cause, t.lost || lost
}

// setFailed is for a refused PIN. It outlives the Token.
func (t *Token) setFailed(cause error) {
	t.module.mu.Lock()
	t.module.refused[t.identity] = cause
	t.module.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != Closed {
		t.state, t.since, t.cause = Failed, time.Now(), cause
	}
}

// found ends being lost.
func (t *Token) found() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost = false
}

type probed int

const (
	probeWell probed = iota
	probeDown        // may be revived
	probeLost        // needs the library re-initialised
)

// probe asks the token whether it is there.
func (t *Token) probe() probed {
	t.mu.Lock()
	state, lost := t.state, t.lost
	t.mu.Unlock()
	if state != Ready && state != Down {
		return probeWell // nothing the supervisor can do
	}
	if lost {
		return probeLost
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	if err := t.module.gate.enter(ctx); err != nil {
		t.setDown(err, true)
		return probeLost
	}
	defer t.module.gate.leave()
	if err := t.present(); err != nil {
		t.setDown(err, true)
		return probeLost
	}
	if state == Down {
		return probeDown
	}
	return probeWell
}

// present asks C_GetTokenInfo, the one call that tells the truth about a token that went away. The caller is inside the gate.
func (t *Token) present() error {
	if !t.module.initialised {
		return &Error{Call: "C_GetTokenInfo", Code: pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED}
	}
	info, err := t.module.lib.GetTokenInfo(t.slot)
	if err != nil {
		return call("C_GetTokenInfo", err)
	}
	if !t.identity.matches(info) {
		return fmt.Errorf("%w: its slot holds token %q, serial %q", ErrNoToken, info.Label, info.SerialNumber)
	}
	return nil
}

// revive makes a down token ready if a session can be opened and is logged in.
func (t *Token) revive() {
	t.mu.Lock()
	down, lost := t.state == Down, t.lost
	t.mu.Unlock()
	if !down || lost {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	if err := t.submit(ctx, (*session).check); err != nil {
		t.setDown(err, false)
		return
	}
	t.setReady()
}

// TokenInfo is what a token says of itself, for evidence.
type TokenInfo struct {
	Label           string `json:"label"`
	Manufacturer    string `json:"manufacturer"`
	Model           string `json:"model"`
	Serial          string `json:"serial"`
	Hardware        string `json:"hardware"` // version, major.minor
	Firmware        string `json:"firmware"`
	Library         string `json:"library"` // the module's description
	LibraryMaker    string `json:"library_manufacturer"`
	LibraryVersion  string `json:"library_version"`
	CryptokiVersion string `json:"cryptoki_version"`
}

// Info asks the token who it is.
func (t *Token) Info(ctx context.Context) (TokenInfo, error) {
	var token pkcs11.TokenInfo
	var library pkcs11.Info
	err := t.do(ctx, func(s *session) (err error) {
		if err := t.present(); err != nil {
			return unavailable(err)
		}
		if token, err = t.module.lib.GetTokenInfo(t.slot); err != nil {
			return unavailable(call("C_GetTokenInfo", err))
		}
		if library, err = t.module.lib.GetInfo(); err != nil {
			return unavailable(call("C_GetInfo", err))
		}
		return nil
	})
	if err != nil {
		return TokenInfo{}, fmt.Errorf("asking token %s for its description: %w", t.cfg, err)
	}
	return TokenInfo{
		Label: printable(token.Label), Manufacturer: printable(token.ManufacturerID), Model: printable(token.Model), Serial: printable(token.SerialNumber),
		Hardware: version(token.HardwareVersion), Firmware: version(token.FirmwareVersion),
		Library: printable(library.LibraryDescription), LibraryMaker: printable(library.ManufacturerID),
		LibraryVersion: version(library.LibraryVersion), CryptokiVersion: version(library.CryptokiVersion),
	}, nil
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// printable drops what some modules pad their fixed-width fields with.
func printable(s string) string { return strings.ToValidUTF8(strings.TrimRight(s, " \x00"), "\uFFFD") }

// Health is a snapshot of a token for status pages and metrics.
type Health struct {
	State      State     `json:"state"`
	Since      time.Time `json:"since"`           // of the state
	Error      string    `json:"error,omitempty"` // why it is not ready
	Sessions   int       `json:"sessions"`        // at most
	Open       int       `json:"open"`            // opened
	Stuck      int       `json:"stuck"`           // in a call that has not returned for longer than the timeout
	Reinits    uint64    `json:"reinits"`         // of the module, by the supervisor
	Reopened   uint64    `json:"reopened"`        // sessions opened in the place of dead ones
	Logins     uint64    `json:"logins"`          // PINs given to the token
	Signatures uint64    `json:"signatures"`      // returned
	Stale      uint64    `json:"stale"`           // signatures made by another key than the pinned one, and discarded
}

// Health returns at once, whatever the token does.
func (t *Token) Health() Health {
	t.mu.Lock()
	h := Health{State: t.state, Since: t.since}
	if t.cause != nil {
		h.Error = t.cause.Error()
	}
	t.mu.Unlock()
	h.Sessions, h.Stuck = len(t.workers), t.stuck()
	for _, w := range t.workers {
		if w.open.Load() {
			h.Open++
		}
	}
	h.Reinits, h.Reopened, h.Logins = t.module.reinits.Load(), t.reopened.Load(), t.logins.Load()
	h.Signatures, h.Stale = t.signatures.Load(), t.stale.Load()
	return h
}
