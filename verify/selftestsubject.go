package verify

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/clock"
	"bulla/record"
)

// subject is evidence that is verified, and what is known of it that mutations are made of.
type subject struct {
	ctx      context.Context // of the selftest, for readers of hashes
	src      Source
	policy   *Policy
	memory   *Memory // that the first run left
	opt      SelftestOptions
	keys     *keyring
	seed     [32]byte          // of keys that are nobody's
	honest   map[string]string // what was found in honest exhibits, by name
	signed   []byte            // the head
	head     record.Checkpoint
	state    ceremony.State    // of governance, at the end
	governed *ceremony.Genesis // what is in force then
	enrolled *attest.Enrolment // by the genesis
	signers  []string          // verifier keys that must have signed the head
	required []string          // verifier keys of which some head of the log must be signed

	target    place64   // an entry between others of its bundle, an event if there is one
	event     place64   // the last
	timed     place64   // the last event with an estimate of UTC
	seal      sealPlace // the last
	seals     place64   // the one before it, if it follows on that
	sealed    []uint64  // events that the last seal covers, ascending; the last few
	gap       place64   // the last record of a gap that it covers
	start     place64   // the first start of the clock
	round     place64   // the last round with an estimate that an entry names
	named     place64   // the first entry that does
	approval  place64   // the last
	approvals []uint64  // of the genesis
	declared  place64   // the enactment of a recovery, of a log with a seal
	behind    uint64    // that seal, the last before it
	first     place64   // event
	token     place64   // the last
	time      int64     // of the last entry, ns
	anew      bool      // behind the last seal officers have had seals go on from something else: numbers need not follow
	recent    []uint64  // events, the last few
	gaps      []uint64  // records of gaps, the last few
	current   struct {  // round
		index  uint64
		number uint64
		named  bool
	}
}

// place64 is the index of an entry that may not be there.
type place64 struct {
	index uint64
	ok    bool
}

func (p *place64) set(index uint64) { *p = place64{index, true} }

// or is the index; without one, the mutation is not applicable because of why.
func (p place64) or(why string) (uint64, error) {
	if !p.ok {
		return 0, inapplicable(why)
	}
	return p.index, nil
}

// sealPlace is a seal, and how many entries it covers.
type sealPlace struct {
	place64
	size uint64
}

// kept is how many recent entries of a kind are remembered.
const kept = 64

func remember(list []uint64, index uint64) []uint64 {
	if len(list) == kept {
		list = slices.Delete(list, 0, 1)
	}
	return append(list, index)
}

// newSubject looks at evidence that a run has verified.
func newSubject(ctx context.Context, r *run, opt SelftestOptions) (*subject, error) {
	s := &subject{
		ctx: ctx, src: r.src, policy: r.policy, memory: r.report.Memory, opt: opt, honest: map[string]string{}, keys: opt.keys,
		signed: r.signed, head: r.head, state: r.fold.state, governed: &r.fold.state.Policy, required: r.knownKeys(),
	}
	s.signers, _ = r.fold.signers(r.head.Size)
	var err error
	for index := uint64(0); index < s.head.Size; {
		_, raw, err := s.bundleOf(ctx, index)
		if err != nil {
			return nil, err
		}
		for i, b := range raw {
			e, err := record.ParseEntry(b)
			if err != nil {
				return nil, err
			}
			if err := s.see(e, i > 0 && i+1 < len(raw)); err != nil {
				return nil, fmt.Errorf("entry %d: %w", index, err)
			}
			index++
		}
	}
	if s.keys == nil {
		if _, err := rand.Read(s.seed[:]); err != nil {
			return nil, err
		}
		s.keys, err = s.throwaway()
	}
	return s, err
}

// see notes what the next entry can be used for.
func (s *subject) see(e *record.Entry, between bool) (err error) {
	s.time = e.Stamp.Sys
	if c := &s.current; e.Stamp.HasEstimate && c.number == e.Stamp.Round && !c.named && c.number > 0 {
		c.named = true
		s.round.set(c.index)
		s.named.set(e.Index)
	}
	if between && (e.Kind == record.KindEvent || !s.target.ok && e.Index > 0) {
		s.target.set(e.Index)
	}
	switch e.Kind {
	case record.KindGenesis:
		var g *ceremony.Genesis
		if g, err = ceremony.ParseGenesis(e.Body); err == nil {
			s.enrolled = g.TPM
		}
	case record.KindEnactment:
		s.seeEnactment(e)
	case record.KindEvent:
		if !s.first.ok {
			s.first.set(e.Index)
		}
		s.event.set(e.Index)
		if e.Stamp.HasEstimate {
			s.timed.set(e.Index)
		}
		s.recent = remember(s.recent, e.Index)
	case record.KindSeal:
		s.seeSeal(e)
	case record.KindSystem:
		var x *record.System
		if x, err = record.ParseSystem(e.Body); err == nil && x.Gap != nil {
			s.gaps = remember(s.gaps, e.Index)
		}
	case record.KindClock:
		var x clock.Evidence
		err = record.UnmarshalCanonical(e.Body, &x)
		s.seeClock(e.Index, &x)
	case record.KindApproval:
		var x *ceremony.Approval
		if x, err = ceremony.ParseApproval(e.Body); err == nil {
			s.approval.set(e.Index)
			if x.Number == 0 {
				s.approvals = remember(s.approvals, e.Index)
			}
		}
	case record.KindToken:
		s.token.set(e.Index)
	}
	return err
}

// seeEnactment notes that another TPM was enrolled, or a recovery declared.
func (s *subject) seeEnactment(e *record.Entry) {
	x, err := ceremony.ParseEnactment(e.Body)
	if err != nil || len(x.Outcome) == 0 {
		return
	}
	var tpm attest.Enrolment
	var lost ceremony.Recovered
	if err := record.UnmarshalCanonical(x.Outcome, &tpm); err == nil && len(tpm.AK) > 0 {
		s.anew = true
	} else if err := record.UnmarshalCanonical(x.Outcome, &lost); err == nil && lost.TPM != nil {
		s.anew = true
		if s.seal.ok {
			s.declared.set(e.Index)
			s.behind = s.seal.index
		}
	}
}

func (s *subject) seeSeal(e *record.Entry) {
	body, err := attest.ParseSeal(e.Body)
	if err != nil {
		return
	}
	st, err := attest.ParseStatement(body.Statement)
	if err != nil {
		return
	}
	for _, h := range st.Logs {
		if h.Log != s.head.Origin {
			continue
		}
		if s.seals = s.seal.place64; s.anew {
			s.seals, s.anew = place64{}, false
		}
		s.seal.set(e.Index)
		s.seal.size = h.Size
		for _, i := range s.recent {
			if i < h.Size && (len(s.sealed) == 0 || i > s.sealed[len(s.sealed)-1]) {
				s.sealed = remember(s.sealed, i)
			}
		}
		for _, i := range s.gaps {
			if i < h.Size {
				s.gap.set(i)
			}
		}
	}
}

func (s *subject) seeClock(index uint64, x *clock.Evidence) {
	switch {
	case x.Round != nil && x.Round.Mapping != nil:
		s.current.index, s.current.number, s.current.named = index, x.Round.Number, false
	case x.Transition != nil && x.Transition.Reason == clock.ReasonStart:
		s.current.number = 0
		if !s.start.ok {
			s.start.set(index)
		}
	}
}

// lastSealed is the last event that the last seal covers.
func (s *subject) lastSealed() (uint64, error) {
	if !s.seal.ok {
		return 0, inapplicable("the log holds no seal")
	}
	if len(s.sealed) == 0 {
		return 0, inapplicable("no seal covers an event")
	}
	return s.sealed[len(s.sealed)-1], nil
}

// key is a key of the seed's: nobody's, and another for each purpose.
func (s *subject) key(purpose string) ed25519.PrivateKey {
	seed := sha256.Sum256(append(s.seed[:], purpose...))
	return ed25519.NewKeyFromSeed(seed[:])
}

// ecdsaKey is such a key on P-256.
func (s *subject) ecdsaKey(purpose string) (fixedKey, error) {
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), s.key(purpose).Seed())
	return fixedKey{k}, err
}

// fixedKey signs the same every time (RFC 6979), so that mutants can be made again.
type fixedKey struct{ *ecdsa.PrivateKey }

func (k fixedKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.PrivateKey.Sign(nil, digest, opts)
}

// throwaway are keys in place of the log's.
func (s *subject) throwaway() (*keyring, error) {
	heads := s.key("heads")
	seals, err := s.ecdsaKey("seals")
	if err != nil {
		return nil, err
	}
	return &keyring{
		heads: func(string) (out []note.Signer, err error) {
			for _, vkey := range s.required {
				v, err := record.NewVerifier(vkey)
				if err != nil {
					return nil, err
				}
				out = append(out, &standIn{v, heads})
			}
			return out, nil
		},
		seals: seals,
		thief: &thief{heads.Public().(ed25519.PublicKey), &seals.PublicKey},
	}, nil
}

// standIn signs under the name of a key that it has not.
type standIn struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s *standIn) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }
