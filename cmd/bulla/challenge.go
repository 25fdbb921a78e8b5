package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/api"
	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
	"bulla/verify"
)

// Bounds of a nonce, in bytes.
const minNonce, maxNonce = 8, 64

func (t *tool) challengeCommand() *cobra.Command {
	var nonce, policy, genesis string
	var counter uint64
	cmd := &cobra.Command{
		Use:   "challenge",
		Short: "Have the appliance's TPM attest the log's head now, and verify the answer",
		Long: `challenge asks for a seal whose statement carries a nonce, and verifies it: that the enrolled TPM signed it, for this nonce, over the head of
the log that the appliance serves, with a counter that is not below what you know of it. The TPM's attestation key must be pinned: by the
policy (its genesis or ak line) or by --genesis. From a genesis that is pinned it reads what the officers changed since: the keys and the TPM
in force are those that count. Without --nonce it makes one of its own; nonces are used once.

It says how things are now. Whether all of the log hangs together is for bulla verify.

Exit codes: 0 verified; 1 the answer contradicts what you trust; 2 nothing pins the key; 69 refused, as when asked too often.`,
		Example: "  bulla challenge --policy auditor.policy\n  bulla challenge --nonce $(openssl rand -hex 16) --genesis $GENESIS --counter 41",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := challengePolicy(policy)
			if err != nil {
				return err
			}
			want := attest.Challenge{Counter: counter}
			if want.Nonce, err = makeNonce(nonce); err != nil {
				return err
			}
			var pin *record.Hash
			if genesis != "" {
				b, err := hex.DecodeString(genesis)
				if err != nil || len(b) != len(record.Hash{}) {
					return usagef("--genesis: must be the genesis's leaf hash, %d hex digits", 2*len(record.Hash{}))
				}
				pin = (*record.Hash)(b)
			}
			a, err := t.connect(cmd.Context())
			if err != nil {
				return err
			}
			return t.challenge(cmd.Context(), a, p, pin, want)
		},
	}
	cmd.Flags().StringVar(&nonce, "nonce", "", "8 to 64 bytes in hex that have never been used (default: 32 random bytes)")
	cmd.Flags().StringVar(&policy, "policy", "", "policy file that says what to trust")
	cmd.Flags().StringVar(&genesis, "genesis", "", "leaf hash of the genesis to trust, in hex")
	cmd.Flags().Uint64Var(&counter, "counter", 0, "the value that the TPM's counter is known to have reached")
	return cmd
}

func challengePolicy(path string) (*verify.Policy, error) {
	if path == "" {
		return &verify.Policy{}, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("%w", err)
	}
	p, err := verify.ParsePolicy(text)
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	return p, nil
}

func makeNonce(given string) ([]byte, error) {
	if given == "" {
		b := make([]byte, 32)
		_, err := rand.Read(b)
		return b, err
	}
	b, err := hex.DecodeString(given)
	if err != nil || len(b) < minNonce || len(b) > maxNonce {
		return nil, usagef("--nonce: must be %d to %d bytes in hex", minNonce, maxNonce)
	}
	return b, nil
}

// challenged is what challenge prints with --json.
type challenged struct {
	Verdict  verify.Verdict  `json:"verdict"`
	Log      string          `json:"log"`
	Nonce    string          `json:"nonce"`
	Seal     uint64          `json:"seal"`
	Entry    uint64          `json:"entry"`
	Size     uint64          `json:"size"` // of the log that is attested
	Head     string          `json:"head"` // SHA-256 of its checkpoint's text, hex
	Counter  uint64          `json:"counter"`
	Clock    uint64          `json:"clock_ms"`
	Resets   uint32          `json:"resets"`
	Exe      string          `json:"exe"` // claimed
	Config   string          `json:"config"`
	Receipt  json.RawMessage `json:"receipt"` // proof of the seal's entry: the evidence of all this
	Findings []problem       `json:"findings,omitempty"`
}

// problem is what is wrong with an answer.
type problem struct {
	Rule     string `json:"rule"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
	Meaning  string `json:"meaning"`
}

// challenge asks for a seal and judges it.
func (t *tool) challenge(ctx context.Context, a *appliance, p *verify.Policy, pin *record.Hash, want attest.Challenge) error {
	// 1. Which TPM is trusted to answer. Before anything is asked of it.
	g, err := a.trusted(ctx, p, pin)
	if err != nil {
		return err
	}
	// 2. The seal.
	sealed, err := a.askChallenge(ctx, want.Nonce)
	if err != nil {
		return err
	}
	index, ok := sealed.Entries[a.log.Name]
	if !ok {
		return coded(exitTampered, fmt.Errorf("the appliance does not say where in log %s the answer is", a.log.Origin))
	}
	// 3. It is in the log, under a head that the log's keys signed.
	answered, err := a.answered(ctx, g, p, index)
	if errors.Is(err, errSigned) { // a ceremony may have replaced the key meanwhile
		if g, err = a.trusted(ctx, p, pin); err == nil {
			answered, err = a.answered(ctx, g, p, index)
		}
	}
	if err != nil {
		return err
	}
	// 4. The TPM signed it, for this nonce, over the head that this very tree had.
	var unread error
	want.Log, want.Head = a.log.Origin, func(size uint64) (record.Hash, bool) {
		h, err := answered.headHash(size)
		unread = errors.Join(unread, err)
		return h, err == nil
	}
	answer, found, err := attest.CheckAnswer(*g.state.Policy.TPM, answered.entry.Body, want)
	if c := (*codedError)(nil); errors.As(unread, &c) {
		return unread
	}
	if err != nil {
		return coded(exitTampered, err)
	}
	return t.printChallenged(answered, want, answer, found)
}

// trusted is what governs the log now, folded from a genesis that is held against what pins it: who is in force of its keys, and which TPM.
func (a *appliance) trusted(ctx context.Context, p *verify.Policy, pin *record.Hash) (*governance, error) {
	g, err := a.governance(ctx)
	if err != nil {
		return nil, err
	}
	leaf, known := g.state.Genesis, false
	for _, want := range []struct {
		by   string
		hash *record.Hash
	}{{"--genesis", pin}, {"the policy", genesisOf(p, a.log.Origin)}} {
		if want.hash == nil {
			continue
		}
		if *want.hash != leaf {
			return nil, coded(exitTampered, fmt.Errorf("the genesis of %s has the hash %x, %s says %x", a.log.Origin, leaf[:], want.by, want.hash[:]))
		}
		known = true
	}
	if origin := g.state.Policy.Origin; origin != a.log.Origin {
		return nil, coded(exitTampered, fmt.Errorf("the genesis is of log %q, not of %q", printable(origin, 80), a.log.Origin))
	}
	return g, g.trustedTPM(p, known)
}

// trustedTPM holds the TPM in force against a policy. Who trusts the genesis leaves it to its officers to replace a TPM: what the policy does not
// know of one that they enrolled is missing, not wrong.
func (g *governance) trustedTPM(p *verify.Policy, known bool) error {
	tpm, err := g.tpm()
	if err == nil {
		err = g.pinnedAK(p, known)
	}
	if err != nil {
		return err
	}
	if !known && len(p.AKs) == 0 {
		return coded(exitNotCheckable, fmt.Errorf("nothing pins the TPM's attestation key: give --genesis HEX, or --policy FILE with a genesis of %s or an ak line", g.state.Policy.Origin))
	}
	return g.endorsed(p, tpm, known)
}

// tpm is the TPM in force.
func (g *governance) tpm() (*enrolled, error) {
	if len(g.tpms) == 0 {
		return nil, coded(exitNotCheckable, fmt.Errorf("log %s has no TPM enrolled", g.state.Policy.Origin))
	}
	return &g.tpms[len(g.tpms)-1], nil
}

// pinnedAK holds the attestation key in force against a policy's ak lines.
func (g *governance) pinnedAK(p *verify.Policy, known bool) error {
	last := g.tpms[len(g.tpms)-1]
	if p.PinsAK(last.tpm) {
		return nil
	}
	old := slices.ContainsFunc(g.tpms, func(e enrolled) bool { return p.PinsAK(e.tpm) })
	switch {
	case !known && old:
		return coded(exitNotCheckable, fmt.Errorf("the policy's ak line names a TPM that the log says officers replaced, by entry %d, and the policy has no genesis of %s to trust that from", last.entry, g.state.Policy.Origin))
	case !known || last.entry == 0:
		return coded(exitTampered, fmt.Errorf("the log's attestation key %x is not one of the policy's ak lines", last.tpm.AKName))
	case old:
		return coded(exitNotCheckable, fmt.Errorf("%w, by entry %d: the policy's ak line names an old one; if it is right, add the line: ak %x", errAnotherTPM, last.entry, last.tpm.AKName))
	}
	return coded(exitNotCheckable, fmt.Errorf("%w, by entry %d, and the policy's ak lines name none that the log ever had; if it is right, add the line: ak %x", errAnotherTPM, last.entry, last.tpm.AKName))
}

// errAnotherTPM says that officers whom a policy trusts enrolled a TPM that its ak lines do not name.
var errAnotherTPM = errors.New("the officers enrolled another TPM")

// endorsed checks that one of those that a policy trusts certifies the endorsement key of the TPM in force.
func (g *governance) endorsed(p *verify.Policy, e *enrolled, known bool) error {
	err := p.Endorses(e.tpm)
	switch {
	case err == nil:
		return nil
	case known && e.entry > 0:
		return coded(exitNotCheckable, fmt.Errorf("%w, by entry %d, whose endorsement key is not certified by those that you trust; if it is right, add its maker's authority: %w", errAnotherTPM, e.entry, err))
	}
	return coded(exitTampered, fmt.Errorf("the TPM's endorsement key is not certified by those that you trust: %w", err))
}

func genesisOf(p *verify.Policy, origin string) *record.Hash {
	if h, ok := p.Genesis[origin]; ok {
		return &h
	}
	return nil
}

// logKeys are the keys that must sign the log's head: those in force, and those of the policy that the log never had. One of the policy's
// that a ceremony replaced, or that has replaced another since, need not be in force where the policy has the genesis that says so.
func logKeys(p *verify.Policy, state *ceremony.State) ([]string, error) {
	out, err := state.VKeys()
	if err != nil {
		return nil, coded(exitTampered, fmt.Errorf("the log's keys: %w", err))
	}
	history := state.History()
	for _, v := range p.VKeys {
		name, _, _ := strings.Cut(v, "+")
		switch {
		case name != state.Policy.Origin || slices.Contains(out, v):
		case !slices.Contains(history, v):
			out = append(out, v)
		case genesisOf(p, name) == nil:
			return nil, coded(exitNotCheckable, fmt.Errorf("the log says that a ceremony replaced its key %.100s, and the policy has no genesis of %s to trust that from", v, name))
		}
	}
	return out, nil
}

func (a *appliance) askChallenge(ctx context.Context, nonce []byte) (*api.Sealed, error) {
	body, err := json.Marshal(api.Challenge{Nonce: nonce})
	if err != nil {
		return nil, err
	}
	b, err := a.do(ctx, http.MethodPost, "/v1/challenge", "", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	var s api.Sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, coded(exitUnavailable, fmt.Errorf("the appliance's answer: %w", err))
	}
	return &s, nil
}

// answered is an answer as the log has it.
type answered struct {
	receipt []byte
	entry   *record.Entry
	tree    *servedTree // under the head of the receipt
}

// answered reads the proof of the answer's entry: under a head that all keys of the log signed, and that is of the same tree as what governs.
func (a *appliance) answered(ctx context.Context, g *governance, p *verify.Policy, index uint64) (*answered, error) {
	vkeys, err := logKeys(p, &g.state)
	if err != nil {
		return nil, err
	}
	raw, err := a.get(ctx, fmt.Sprintf("%s/v1/entries/%d/proof", a.prefix, index))
	if err != nil {
		return nil, err
	}
	entry, head, err := openProof(raw, vkeys, a.log.Origin, index)
	if err != nil {
		return nil, coded(exitTampered, fmt.Errorf("the proof of the answer's entry: %w", err))
	}
	if entry.Kind != record.KindSeal {
		return nil, coded(exitTampered, fmt.Errorf("entry %d is of kind %s, not the seal that was asked for", index, entry.Kind))
	}
	out := &answered{receipt: raw, entry: entry, tree: &servedTree{ctx: ctx, src: a, head: head, tiles: map[tlog.Tile][]byte{}}}
	root, err := out.tree.root(g.head.Size)
	if err == nil && root != g.head.Root {
		err = errors.New("its root is another")
	}
	if c := (*codedError)(nil); err != nil && !errors.As(err, &c) {
		err = coded(exitTampered, fmt.Errorf("the head of %d entries does not go on from that of %d: %w", head.Size, g.head.Size, err))
	}
	return out, err
}

// openProof checks a receipt of an entry against all keys of the log.
func openProof(raw []byte, vkeys []string, origin string, index uint64) (e *record.Entry, head record.Checkpoint, err error) {
	raw, err = record.Canonicalize(raw, record.MaxDepth)
	if err != nil {
		return nil, head, err
	}
	r, err := record.ParseReceipt(raw)
	if err != nil {
		return nil, head, err
	}
	for _, vkey := range vkeys {
		v, err := record.NewVerifier(vkey)
		if err != nil {
			return nil, head, err
		}
		e, head, err = r.Verify(v)
		if other := (*note.UnverifiedNoteError)(nil); errors.As(err, &other) {
			err = fmt.Errorf("%w: %w", errSigned, err)
		}
		if err != nil {
			return nil, head, err
		}
	}
	if e == nil || e.Index != index || head.Origin != origin {
		return nil, head, fmt.Errorf("it is not of entry %d of %s", index, origin)
	}
	return e, head, nil
}

// headHash is the hash of the checkpoint's text that the log had at a size, before the entry of the seal.
func (a *answered) headHash(size uint64) (record.Hash, error) {
	if size > a.entry.Index {
		return record.Hash{}, errors.New("a seal cannot cover itself")
	}
	root, err := a.tree.root(size)
	if err != nil {
		return record.Hash{}, err
	}
	return sha256.Sum256([]byte(record.Checkpoint{Origin: a.tree.head.Origin, Size: size, Root: root}.Text())), nil
}

func (t *tool) printChallenged(in *answered, want attest.Challenge, a *attest.Answer, found []attest.Finding) error {
	out := challenged{Verdict: verify.OutcomeVerified, Log: want.Log, Nonce: hex.EncodeToString(want.Nonce), Entry: in.entry.Index, Receipt: in.receipt}
	if a != nil {
		out.Seal, out.Size, out.Head, out.Counter = a.Number, a.Head.Size, hex.EncodeToString(a.Head.Hash[:]), a.Counter
		out.Clock, out.Resets = a.Clock.Clock, a.Clock.ResetCount
		out.Exe, out.Config = hex.EncodeToString(a.Software.Exe[:]), hex.EncodeToString(a.Software.Config[:])
	}
	for _, f := range found {
		meaning := attest.Rules[f.Rule]
		if meaning == "" {
			meaning = attest.ChallengeRules[f.Rule]
		}
		out.Verdict = verify.OutcomeTampered
		out.Findings = append(out.Findings, problem{string(f.Rule), printable(f.Expected, 300), printable(f.Found, 300), meaning})
	}
	var err error
	if t.json {
		err = t.printJSON(out)
	} else {
		err = out.print(t)
	}
	if err == nil && len(found) > 0 {
		err = coded(exitTampered, errors.New("the answer to the challenge does not hold"))
	}
	return err
}

func (c *challenged) print(t *tool) error {
	if len(c.Findings) > 0 {
		for _, f := range c.Findings {
			if _, err := fmt.Fprintf(t.out, "%s: %s\n  expected %s\n  found    %s\n", f.Rule, f.Meaning, f.Expected, f.Found); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := fmt.Fprintf(t.out, `verified: the TPM attests the head of %s for this nonce
nonce    %s
seal     %d, entry %d
head     %d entries, SHA-256 %s
counter  %d (next time: --counter %[7]d)
clock    %d ms with power, %d resets of the TPM
claimed  executable %s
         configuration %s
`, c.Log, c.Nonce, c.Seal, c.Entry, c.Size, c.Head, c.Counter, c.Clock, c.Resets, c.Exe, c.Config)
	return err
}
