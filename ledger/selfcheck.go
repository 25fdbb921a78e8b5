package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bulla/record"
)

// Defaults of a self-check, and bounds of what it does at a time.
const (
	DefaultCheckRate   = 1 << 20 // bytes a second: 86 GB a day
	DefaultCheckRound  = time.Hour
	DefaultCheckSample = time.Second

	checkEntries = 256      // read at a time
	checkBytes   = 64 << 10 // of entries; then no more are read at a time
	maxAlarms    = 100      // recorded a log and run; what else differs is counted
)

// SelfCheckConfig is what a self-check works with.
type SelfCheckConfig struct {
	Logs   []*Ledger     // every log of the daemon
	Rate   int64         // bytes of entries and hashes read a second, at most, over all logs; 0: DefaultCheckRate
	Round  time.Duration // a full round begins so long after the last one began, or when that has ended; 0: DefaultCheckRound
	Sample time.Duration // between random entries; 0: DefaultCheckSample
}

// SelfCheck re-reads and re-hashes what the daemon has stored, beside the append path and as slowly as it is told to, and compares it
// with the heads that the daemon holds in memory, which nobody can change behind its back. A full round reads every entry and every
// tree hash; random entries are checked between and during rounds, each with its proof. What differs is recorded as an alarm in every
// log, once a finding and run; appending goes on.
//
// It reads what the operating system gives out for the file. A medium that has decayed below pages that are still cached shows when
// they are read from it again.
type SelfCheck struct {
	cfg  SelfCheckConfig
	paid time.Time // when what was read so far has been paid for by waiting
	due  time.Time // when the next full round is due
	next time.Time // when the next sample is due
	turn int       // whose

	mu   sync.Mutex
	logs []checkedLog
}

// checkedLog is a log and what is known of it.
type checkedLog struct {
	ledger   *Ledger
	status   SelfCheckStatus
	reported map[Difference]bool
}

// SelfCheckStatus is how the self-check of a log goes. What it counts, it counts since the start.
type SelfCheckStatus struct {
	Origin   string
	Rounds   uint64     // full ones
	Last     CheckRound // the last full round; zero: none yet
	Position uint64     // how many entries the round under way has read
	Entries  uint64     // read in rounds
	Samples  uint64     // read at random
	Bytes    uint64     // of entries and tree hashes, read in both
	Failures uint64     // differences; of a sound store, 0
	Finding  string     // the last one
}

// CheckRound is a full round: every entry and every tree hash of the log as it was when the round began.
type CheckRound struct {
	Began, Ended time.Time
	Entries      uint64
	Failures     uint64
}

// Difference is something stored that is not what it was when it was committed.
type Difference struct {
	Log      string // origin
	What     string // entry, tree hash, root or checkpoint
	Index    uint64 // of the entry, or of the stored tree hash (tlog.StoredHashIndex)
	Expected string
	Found    string
}

func (d Difference) String() string {
	what := d.What
	if what == whatEntry || what == whatHash {
		what = fmt.Sprintf("%s %d", d.What, d.Index)
	}
	return fmt.Sprintf("the store of log %s differs from what was committed: %s: expected %s, found %s", d.Log, what, d.Expected, d.Found)
}

// What differs.
const (
	whatEntry      = "entry"
	whatHash       = "tree hash"
	whatRoot       = "root"
	whatCheckpoint = "checkpoint"
)

// NewSelfCheck makes a self-check; Run does it.
func NewSelfCheck(cfg SelfCheckConfig) *SelfCheck {
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultCheckRate
	}
	if cfg.Round <= 0 {
		cfg.Round = DefaultCheckRound
	}
	if cfg.Sample <= 0 {
		cfg.Sample = DefaultCheckSample
	}
	s := &SelfCheck{cfg: cfg}
	for _, l := range cfg.Logs {
		s.logs = append(s.logs, checkedLog{ledger: l, status: SelfCheckStatus{Origin: l.Origin()}, reported: map[Difference]bool{}})
	}
	return s
}

// Status returns a snapshot for each log, in the order of the configuration.
func (s *SelfCheck) Status() []SelfCheckStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []SelfCheckStatus
	for _, l := range s.logs {
		out = append(out, l.status)
	}
	return out
}

// Run checks until ctx ends.
func (s *SelfCheck) Run(ctx context.Context) error {
	s.paid = time.Now()
	s.next = s.paid
	for {
		s.due = time.Now().Add(s.cfg.Round)
		for i := range s.logs {
			if err := s.round(ctx, &s.logs[i]); err != nil {
				return ignoreEnd(ctx, err)
			}
		}
		for now := time.Now(); now.Before(s.due); now = time.Now() {
			if err := s.wait(ctx, s.next); err != nil {
				return ignoreEnd(ctx, err)
			}
		}
	}
}

// ignoreEnd makes the end of ctx no error.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// round re-reads a log from its first entry to the head that is committed now.
func (s *SelfCheck) round(ctx context.Context, c *checkedLog) error {
	h := c.ledger.committed.Load()
	s.mu.Lock()
	failures := c.status.Failures
	s.mu.Unlock()
	began := time.Now()
	at := &recheck{ledger: c.ledger, head: h}
	for at.tree.Size() < h.size() {
		next, err := at.read()
		if err == nil && len(next.found) > 0 { // what was committed does not change: it must be found twice
			next, err = at.read()
		}
		if err != nil {
			return err
		}
		s.count(c, func(st *SelfCheckStatus) {
			st.Entries, st.Bytes, st.Position = st.Entries+next.tree.Size()-at.tree.Size(), st.Bytes+uint64(next.bytes), next.tree.Size()
		})
		if err := s.report(ctx, c, next.found); err != nil {
			return err
		}
		at = next
		if err := s.pay(ctx, at.bytes); err != nil {
			return err
		}
	}
	if err := s.report(ctx, c, at.end()); err != nil {
		return err
	}
	s.count(c, func(st *SelfCheckStatus) {
		st.Rounds, st.Position = st.Rounds+1, 0
		st.Last = CheckRound{Began: began, Ended: time.Now(), Entries: h.size(), Failures: st.Failures - failures}
	})
	return nil
}

// sample re-reads a random entry, and the tree hashes that prove it. If one of those is wrong, a full round finds out which.
func (s *SelfCheck) sample(ctx context.Context) error {
	c := &s.logs[s.turn%len(s.logs)]
	s.turn++
	h := c.ledger.committed.Load()
	index := rand.Uint64N(h.size())
	ok, found, bytes := c.ledger.recheckOne(h, index)
	if !ok {
		ok, found, bytes = c.ledger.recheckOne(h, index)
	}
	s.count(c, func(st *SelfCheckStatus) { st.Samples, st.Bytes = st.Samples+1, st.Bytes+uint64(bytes) })
	s.charge(bytes)
	if !ok {
		s.due = time.Now()
	}
	return s.report(ctx, c, found)
}

func (s *SelfCheck) count(c *checkedLog, f func(*SelfCheckStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&c.status)
}

// charge counts what was read against the rate.
func (s *SelfCheck) charge(bytes int) {
	if now := time.Now(); s.paid.Before(now) {
		s.paid = now
	}
	s.paid = s.paid.Add(time.Duration(float64(bytes) / float64(s.cfg.Rate) * float64(time.Second)))
}

// pay waits until what was read is within the rate.
func (s *SelfCheck) pay(ctx context.Context, bytes int) error {
	s.charge(bytes)
	return s.wait(ctx, s.paid)
}

// wait waits, and checks random entries meanwhile; what those cost is waited for as well.
func (s *SelfCheck) wait(ctx context.Context, until time.Time) error {
	for {
		now := time.Now()
		if !s.next.After(now) && !s.paid.After(now) {
			if err := s.sample(ctx); err != nil {
				return err
			}
			s.next = now.Add(s.cfg.Sample)
		}
		if s.paid.After(until) {
			until = s.paid
		}
		if now = time.Now(); !now.Before(until) {
			return ctx.Err()
		}
		pause := until.Sub(now)
		if sample := max(s.next.Sub(now), s.paid.Sub(now)); sample > 0 {
			pause = min(pause, sample)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// report counts what differs, and records in every log what has not been reported yet. What could not be recorded is reported when it
// is found again.
func (s *SelfCheck) report(ctx context.Context, c *checkedLog, found []Difference) error {
	for _, d := range found {
		if ctx.Err() != nil { // the store may be closing
			return ctx.Err()
		}
		s.count(c, func(st *SelfCheckStatus) { st.Failures, st.Finding = st.Failures+1, d.String() })
		if c.reported[d] || len(c.reported) > maxAlarms {
			continue
		}
		message := d.String()
		if len(c.reported) == maxAlarms {
			message = fmt.Sprintf("the store of log %s differs in more than %d places: what else is found is counted and not recorded", d.Log, maxAlarms)
		}
		switch err := s.alarm(ctx, message); {
		case err == nil:
			c.reported[d] = true
		case errors.Is(err, ErrUnknown):
			return err
		}
	}
	return nil
}

// alarm records that a store is not what it was, in every log: the one that differs may be the worst place for it.
func (s *SelfCheck) alarm(ctx context.Context, message string) error {
	body, err := record.MarshalCanonical(&record.System{Event: record.SystemAlarm, Code: record.CodeDisk, Message: clip(message)})
	if err != nil {
		return fmt.Errorf("self-check: %w", err)
	}
	var errs []error
	for _, l := range s.cfg.Logs {
		if _, err := l.Record(ctx, record.KindSystem, body); err != nil {
			errs = append(errs, fmt.Errorf("self-check: %w", err))
		}
	}
	return errors.Join(errs...)
}

// recheck is a round of one log, as far as it has come. It never changes once made: a part of the log can be read again.
type recheck struct {
	ledger *Ledger
	head   *head
	tree   record.Tree // over the true leaf hashes so far
	prev   record.Hash // the last of them
	bytes  int         // read in the last step
	found  []Difference
}

// read checks the next entries and the tree hashes stored for them. The error is about reading in general; what is wrong with an
// entry is found.
//
// An entry's hash is known three times: from its bytes, as a stored leaf of the tree, and from the link of the entry after it. Where
// they differ, two of them outvote the third, so that one damaged byte is one finding.
func (r *recheck) read() (*recheck, error) {
	from := r.tree.Size()
	entries, bytes := r.ledger.readSome(from, r.head.size())
	to := from + uint64(len(entries))
	lowest, end := tlog.StoredHashIndex(0, int64(from)), tlog.StoredHashIndex(0, int64(to))
	stored, faults := r.ledger.readHashes(lowest, end)
	next := &recheck{ledger: r.ledger, head: r.head, tree: *r.tree.Clone(), prev: r.prev, bytes: bytes + len(stored)*tlog.HashSize}
	var made []record.Hash
	for i, e := range entries {
		index := from + uint64(i)
		link := r.head.prev
		if i+1 < len(entries) {
			link = entries[i+1].prev
		} else if to < r.head.size() {
			link = r.ledger.readOne(to).prev
		}
		leaf := stored[tlog.StoredHashIndex(0, int64(index))-lowest]
		truth := leaf
		switch {
		case e.fault == "" && (e.leaf == leaf || e.leaf == link): // a stored leaf that is wrong is found below
			truth = e.leaf
			if e.prev != next.prev && index > 0 {
				next.differs(whatEntry, index, "a link to leaf hash "+next.prev.String(), "a link to "+e.prev.String())
			}
		default:
			next.found = append(next.found, r.ledger.entryDiffers(index, leaf, e))
		}
		first := lowest + int64(len(made))
		made = next.tree.Append(made, truth)
		next.prev = truth
		for at := first; at < lowest+int64(len(made)); at++ {
			if fault, bad := faults[at]; bad {
				next.differs(whatHash, uint64(at), made[at-lowest].String(), fault)
			} else if stored[at-lowest] != made[at-lowest] {
				next.differs(whatHash, uint64(at), made[at-lowest].String(), stored[at-lowest].String())
			}
		}
	}
	if to == from {
		return nil, fmt.Errorf("self-check: no entry was read from index %d", from)
	}
	return next, nil
}

func (r *recheck) differs(what string, index uint64, expected, found string) {
	r.found = append(r.found, Difference{Log: r.ledger.Origin(), What: what, Index: index, Expected: expected, Found: found})
}

// end compares the whole with the head that was committed when the round began, and looks at the stored one.
func (r *recheck) end() []Difference {
	out := &recheck{ledger: r.ledger}
	if want, got := r.head.tree.Root(), r.tree.Root(); got != want {
		out.differs(whatRoot, 0, fmt.Sprintf("%v over %d entries", want, r.head.size()), got.String())
	}
	committed := r.ledger.committed.Load()
	signed, err := r.ledger.store.Head() // that one, or a later one
	if err != nil {
		out.differs(whatCheckpoint, 0, "a signed head", err.Error())
		return out.found
	}
	text, _, _ := strings.Cut(string(signed), "\n\n")
	if head, err := record.ParseCheckpoint(text + "\n"); err != nil || head.Size < committed.size() || head.Size == committed.size() && !bytes.Equal(signed, committed.checkpoint) {
		out.differs(whatCheckpoint, 0, strconv.Quote(string(committed.checkpoint)), strconv.Quote(string(signed[:min(len(signed), 1000)])))
	}
	return out.found
}

// reread is an entry as it was read again.
type reread struct {
	leaf  record.Hash
	prev  record.Hash // the link that it holds
	fault string      // why it is no entry of this place; then it has neither
}

// readSome reads entries from an index on. Each that the store cannot give is there, with its fault.
func (l *Ledger) readSome(from, end uint64) (out []reread, bytes int) {
	end = min(end, from+checkEntries)
	err := l.store.Range(from, end, func(index uint64, entry []byte) bool {
		if index != from+uint64(len(out)) {
			return false // one is missing
		}
		out = append(out, l.reread(index, entry))
		bytes += len(entry)
		return bytes < checkBytes
	})
	if err != nil || len(out) == 0 { // one by one, to find out which
		out, bytes = nil, 0
		for index := from; index < end && bytes < checkBytes; index++ {
			out = append(out, l.readOne(index))
			bytes += checkBytes / checkEntries
		}
	}
	return out, bytes
}

func (l *Ledger) readOne(index uint64) reread {
	entry, err := l.store.Entry(index)
	if err != nil {
		return reread{fault: err.Error()}
	}
	return l.reread(index, entry)
}

func (l *Ledger) reread(index uint64, entry []byte) reread {
	leaf := record.LeafHash(entry)
	e, err := record.ParseEntry(entry)
	switch {
	case err != nil:
		return reread{fault: fmt.Sprintf("leaf hash %v, of what is no entry: %v", leaf, err)}
	case e.Index != index || e.Log != l.cfg.Origin:
		return reread{fault: fmt.Sprintf("leaf hash %v, of entry %d of log %.100q", leaf, e.Index, e.Log)}
	}
	return reread{leaf: leaf, prev: e.Prev}
}

// readHashes reads the stored tree hashes [from,to). Those that the store cannot give have a fault.
func (l *Ledger) readHashes(from, to int64) ([]record.Hash, map[int64]string) {
	indexes := make([]int64, to-from)
	for i := range indexes {
		indexes[i] = from + int64(i)
	}
	hashes, err := l.store.ReadHashes(indexes)
	if err == nil {
		return hashes, nil
	}
	hashes = make([]record.Hash, len(indexes))
	faults := map[int64]string{}
	for i, index := range indexes {
		if one, err := l.store.ReadHashes([]int64{index}); err != nil {
			faults[index] = err.Error()
		} else {
			hashes[i] = one[0]
		}
	}
	return hashes, faults
}

// recheckOne re-reads an entry and proves it in the tree of h. It says whether that worked, what differs if it is the entry, and how
// many bytes it read.
func (l *Ledger) recheckOne(h *head, index uint64) (ok bool, found []Difference, bytes int) {
	entry, err := l.store.Entry(index)
	bytes = len(entry)
	if err == nil {
		var proof []record.Hash
		proof, err = tlog.ProveRecord(int64(h.size()), int64(index), l.store)
		bytes += len(proof) * tlog.HashSize
		if err == nil && tlog.CheckRecord(proof, int64(h.size()), h.tree.Root(), int64(index), record.LeafHash(entry)) == nil {
			return true, nil, bytes
		}
	}
	e, at := l.readOne(index), tlog.StoredHashIndex(0, int64(index))
	if stored, faults := l.readHashes(at, at+1); len(faults) == 0 && e.leaf != stored[0] {
		link := h.prev
		if index+1 < h.size() {
			link = l.readOne(index + 1).prev
		}
		if link == stored[0] { // else it is not sure which of the two is wrong
			found = append(found, l.entryDiffers(index, stored[0], e))
		}
	}
	return false, found, bytes
}

// entryDiffers says that an entry is not the one with the given leaf hash.
func (l *Ledger) entryDiffers(index uint64, leaf record.Hash, e reread) Difference {
	found := e.fault
	if found == "" {
		found = "leaf hash " + e.leaf.String()
	}
	return Difference{Log: l.Origin(), What: whatEntry, Index: index, Expected: "leaf hash " + leaf.String(), Found: found}
}
