// Package ledger is the one writer of a log: it turns what is waiting into evidence.
//
// The protocol is the function sequence, in sequence.go; read it first. Around it: queue.go holds what is waiting, admit.go
// decides what of it is taken, turns.go when, where several logs share a device, govern.go is what ceremonies add, waiting.go what of it waits
// outside a log that was rolled back, window.go recognises repeats, open.go makes and opens a log, replay.go
// reads its end again, read.go serves what is committed,
// sealer.go has the machine's TPM attest the heads of all logs, seal.go is how, sealerfile.go what it remembers, sealercheck.go whether the
// TPM is as the last seal left it, and sealerrecover.go what follows when people go on although it is not.
//
// Two things can go wrong with a batch. Either it fails: nothing of it is kept, its producers are refused, the daemon's own
// records are sequenced anew, and the ledger goes on. Or the outcome of its commit is unknown: the ledger stops for good
// (Done), the process must end, and opening the log again finds out.
package ledger

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
	"bulla/store"
)

// Config is what a ledger works with.
type Config struct {
	Origin string       // the log's name; Open refuses a file of another
	Clock  clock.Source // stamps each batch
	// Signer opens the key that governs a line of the log's checkpoints, wherever it is: when the log is opened, and when a ceremony
	// puts another in its place. A signature may take up to the device's own deadline; an error fails the batch. A signer verifies
	// its signatures under its public key before it returns them, as those of packages hsm and tpm do: a device can sign with
	// another key than it was asked to.
	Signer func(k ceremony.Key) (Signer, error)
	// Waiting is the file of what officers decide about a recovery while the log was rolled back; empty: nothing can be.
	Waiting string
}

// Signer is a key in a device.
type Signer struct {
	crypto.Signer
	Device record.Code // what a failure of it is called: CodeHSM or CodeTPM
	Turns  *Turns      // of that device; nil: the ledger is alone with it
}

// Store keeps a log's batches; *store.Log is the real one.
type Store interface {
	// Commit makes a batch durable, all or nothing. An error wrapping store.ErrUnknown leaves open which.
	Commit(*store.Batch) error
	PutStreams(changed []store.Stream, size uint64) error
	Streams() ([]store.Stream, uint64, error)
	Origin() (string, error)
	Head() ([]byte, error)
	Size() (uint64, error)
	Entry(index uint64) ([]byte, error)
	Range(from, to uint64, f func(index uint64, entry []byte) bool) error
	Marks(kind record.Kind, from uint64, f func(index uint64) bool) error
	LastMark(kind record.Kind) (index uint64, ok bool, err error)
	ReadHashes(indexes []int64) ([]record.Hash, error)
	Tile(t tlog.Tile) ([]byte, error)
	Close() error
}

// Event is one producer's event, validated and canonical: what record.CanonicalEvent returned.
type Event struct {
	Body []byte
	Key  record.EventKey
}

// Caller is who calls: what the kernel proved (uid, gid, groups) and what was observed. It does not change once it was used.
type Caller struct {
	record.Producer
	Groups []uint32

	once    sync.Once
	encoded []byte // the producer as entries have it
	err     error
}

// canonical is the producer as entries have it, encoded once a connection.
func (c *Caller) canonical() ([]byte, error) {
	c.once.Do(func() { c.encoded, c.err = c.Producer.Append(nil) })
	return c.encoded, c.err
}

// Refusal is the answer to a request of which nothing was taken.
type Refusal struct {
	Code       record.Code
	Field      string // which part of the request, as "events[3].type"; empty when it is not the request's fault
	Message    string
	RetryAfter time.Duration // 0: trying again will not help, or not by waiting
	Err        error         // the cause inside, if any
}

func (r *Refusal) Error() string {
	if r.Field != "" {
		return fmt.Sprintf("refused (%s): %s: %s", r.Code, r.Field, r.Message)
	}
	return fmt.Sprintf("refused (%s): %s", r.Code, r.Message)
}

func (r *Refusal) Unwrap() error { return r.Err }

// ErrUnknown means that it is not known whether the request was taken. Ask again with the same stream number or id.
var ErrUnknown = errors.New("outcome unknown: ask again with the same stream number or id")

// Ledger is the writer of one log, and serves what it has committed. All methods may be used concurrently.
type Ledger struct {
	cfg   Config
	store Store

	committed atomic.Pointer[head]
	shown     atomic.Pointer[shown] // what readers were last shown
	hashes    *hashes
	hold      atomic.Pointer[Refusal] // why events are refused at the moment, by order of the sealer
	queue     *queue
	stats     stats
	readers   readers

	signing    atomic.Int64 // how long the last signature took, ns
	resnapshot atomic.Bool  // the next snapshot of streams must cover all of them

	// Owned by the sequencing goroutine.
	tip    *head    // what the last batch made, signed and committed or not
	line   []*batch // under way, each on the one before
	window *window  // recognises repeats among the last entries

	enacting sync.Mutex // one proposal is carried out at a time
	waiting  sync.Mutex // of what waits outside the log

	stop       context.CancelFunc
	done       chan struct{}
	background sync.WaitGroup // stream snapshots under way
	fatal      atomic.Pointer[error]
}

// head is a state of the log after some batch; it never changes once made, but for the additional line, which is made when asked for.
type head struct {
	tree       *record.Tree
	prev       record.Hash // leaf hash of the last entry
	state      ceremony.State
	lines      *lines // who signs it: the keys in force
	checkpoint []byte // signed note with the authoritative line; of a tip that is not yet signed, nil

	both  sync.Once // makes twice
	twice []byte    // the checkpoint with the additional line
}

// lines make a head's lines.
type lines struct {
	log     note.Signer   // the authoritative one
	verify  note.Verifier // of that
	device  record.Code   // what its failure is called
	turns   *Turns        // of its device
	interop note.Signer   // the additional one; nil: none
}

func (h *head) size() uint64 { return h.tree.Size() }

// Origin is the log's name.
func (l *Ledger) Origin() string { return l.cfg.Origin }

// Done is closed when the ledger has stopped, by Close or because a commit's outcome is unknown; Err then says why.
func (l *Ledger) Done() <-chan struct{} { return l.done }

// Err is nil while the ledger runs and after Close; otherwise it is what stopped it, wrapping ErrUnknown.
func (l *Ledger) Err() error {
	if err := l.fatal.Load(); err != nil {
		return *err
	}
	return nil
}

// Close finishes the batch under way, refuses what still waits, and closes the log file.
func (l *Ledger) Close() error {
	l.stop()
	<-l.done
	l.background.Wait()
	return l.store.Close()
}

// Append sequences a producer's events, all or none, with consecutive indices (a repeat keeps its own), in one batch. It returns
// when they are durable and signed. The context bounds the waiting only: with its error comes ErrUnknown, as the events may
// still be taken. Other errors are a *Refusal.
func (l *Ledger) Append(ctx context.Context, c *Caller, events []Event) (*Result, error) {
	r, err := newAppend(c, events)
	if err != nil {
		return nil, err
	}
	if err := l.queue.put(r); err != nil {
		return nil, l.stats.refused(err)
	}
	select {
	case a := <-r.done:
		return a.result, l.stats.refused(a.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

// Record sequences one of the daemon's own records, before any waiting event. It is never refused for the clock's, the seal's or
// the rollback's sake, and is tried again when a batch fails, until the context ends: then it is withdrawn, and an error that does not
// wrap ErrUnknown means that it was not taken.
func (l *Ledger) Record(ctx context.Context, kind record.Kind, body []byte) (*Result, error) {
	if ceremony.Governs(kind) {
		return nil, fmt.Errorf("recording %s: only a ceremony makes such entries", kind)
	}
	if len(body) > record.MaxEvent {
		return nil, fmt.Errorf("recording %s: %d bytes are more than %d", kind, len(body), record.MaxEvent)
	}
	r := &request{own: true, kind: kind, body: body, size: len(body), done: make(chan answer, 1)}
	if err := l.queue.put(r); err != nil {
		return nil, err
	}
	select {
	case a := <-r.done:
		return a.result, a.err
	case <-ctx.Done():
	}
	if l.queue.withdraw(r) {
		return nil, fmt.Errorf("recording %s: withdrawn: %w", kind, ctx.Err())
	}
	a := <-r.done
	return a.result, a.err
}

// Hold makes the ledger refuse events, with r as the reason, until Hold(nil). The daemon's own records go on.
func (l *Ledger) Hold(r *Refusal) { l.hold.Store(r) }

// Held returns why events are refused by order of Hold, or nil.
func (l *Ledger) Held() *Refusal { return l.hold.Load() }
