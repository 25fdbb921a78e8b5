package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/ceremony"
	"bulla/clock"
	"bulla/hsm"
	"bulla/record"
)

// Plan is the file that a genesis is made from: what the log will be governed by. docs/genesis.toml shows every key.
type Plan struct {
	Origin    string     `toml:"origin"`
	Algorithm string     `toml:"algorithm"`
	Roles     []RolePlan `toml:"role"`

	Officers       []OfficerPlan    `toml:"officer"`
	ProposerCounts bool             `toml:"proposer_counts"`
	Thresholds     []ThresholdPlan  `toml:"threshold"`
	Predecessor    *PredecessorPlan `toml:"predecessor"`

	Quotas QuotaPlan `toml:"quotas"`
	Clock  ClockPlan `toml:"clock"`
	Seal   SealPlan  `toml:"seal"`
	TPM    TPMPlan   `toml:"tpm"` // not part of the genesis

	draft *ceremony.Genesis // what the plan says by itself
}

// RolePlan says who has a role.
type RolePlan struct {
	Name string   `toml:"name"`
	Any  bool     `toml:"any"`
	UIDs []uint32 `toml:"uids"`
	GIDs []uint32 `toml:"gids"`
}

// OfficerPlan appoints an officer.
type OfficerPlan struct {
	Name      string `toml:"name"`
	Key       string `toml:"key"`        // a line of a .pub file
	Verify    bool   `toml:"verify"`     // FIDO2 keys: ask for PIN or fingerprint, too
	ValidFrom string `toml:"valid_from"` // RFC 3339
	ValidTo   string `toml:"valid_to"`
}

// ThresholdPlan says how many officers an action needs.
type ThresholdPlan struct {
	Action   string `toml:"action"`
	Officers int    `toml:"officers"`
}

// PredecessorPlan names the log that this one succeeds, which a recovery closed.
type PredecessorPlan struct {
	Origin string `toml:"origin"`
	Size   uint64 `toml:"size"`
	Root   string `toml:"root"` // base64, as in its checkpoint
}

// QuotaPlan bounds one producer.
type QuotaPlan struct {
	Streams int `toml:"streams"`
}

// ClockPlan changes clock.DefaultPolicy.
type ClockPlan struct {
	Mode       *string   `toml:"mode"`
	Faulty     *int      `toml:"faulty"`
	MinSources *int      `toml:"min_sources"`
	Strict     bool      `toml:"strict"`
	Limit      *duration `toml:"limit"`
	Warn       *duration `toml:"warn"`
	Holdover   *duration `toml:"holdover"`
	MaxOffset  *duration `toml:"max_offset"`
	Leap       *string   `toml:"leap"`
	Poll       *duration `toml:"poll"`
}

// SealPlan changes ceremony.DefaultSealPolicy.
type SealPlan struct {
	PCR       *int      `toml:"pcr"`
	PCRs      []int     `toml:"pcrs"`
	Interval  *duration `toml:"interval"`
	Increment *duration `toml:"increment"`
	Unsealed  *duration `toml:"unsealed"`
}

// duration is written as "10s".
type duration time.Duration

// UnmarshalText reads what time.ParseDuration does.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// MarshalText writes what UnmarshalText reads.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// defaultPCR is the seal PCR of a plan that names none.
const defaultPCR = 13

func loadPlan(path string) (*Plan, error) {
	var p Plan
	err := loadTOML(path, &p)
	if err != nil {
		return nil, err
	}
	if p.Algorithm == "" {
		p.Algorithm = string(hsm.ECDSAP256)
	}
	if p.Seal.PCR == nil {
		p.Seal.PCR = new(int)
		*p.Seal.PCR = defaultPCR
	}
	if *p.Seal.PCR == 16 || *p.Seal.PCR == 23 {
		return nil, usagef("%s: seal.pcr: PCR %d can be reset by any program; choose another, as %d", path, *p.Seal.PCR, defaultPCR)
	}
	if p.Algorithm != string(hsm.ECDSAP256) && p.Algorithm != string(hsm.ECDSAP384) {
		return nil, usagef("%s: algorithm: %q is not one of ecdsa-p256, ecdsa-p384", path, p.Algorithm)
	}
	if err := p.clockPolicy().Validate(); err != nil {
		return nil, usagef("%s: clock.%w", path, err)
	}
	if p.draft, err = p.genesis(); err == nil {
		err = p.draft.ValidatePlan(time.Now().UnixNano())
	}
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	return &p, nil
}

// officers are those that the plan appoints, and how many of them each action needs.
func (p *Plan) officers(g *ceremony.Genesis) error {
	for i, o := range p.Officers {
		key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(o.Key))
		if err != nil || len(options) > 0 || len(rest) > 0 {
			return fmt.Errorf("officer[%d].key: must be a line of a .pub file, as ssh-keygen makes it", i)
		}
		officer := ceremony.Officer{Name: o.Name, Verify: o.Verify, Touch: strings.HasPrefix(key.Type(), "sk-"), Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))}
		for _, t := range []struct {
			name, text string
			to         *string
		}{{"valid_from", o.ValidFrom, &officer.ValidFrom}, {"valid_to", o.ValidTo, &officer.ValidTo}} {
			if t.text == "" {
				continue
			}
			at, err := time.Parse(time.RFC3339Nano, t.text)
			if err != nil {
				return fmt.Errorf("officer[%d].%s: %q is no time as 2030-01-01T00:00:00Z", i, t.name, t.text)
			}
			*t.to = string(record.AppendTime(nil, at.UnixNano()))
		}
		g.Officers = append(g.Officers, officer)
	}
	for i, t := range p.Thresholds {
		if _, twice := g.Thresholds[t.Action]; twice {
			return fmt.Errorf("threshold[%d].action: %q is there twice", i, t.Action)
		}
		if g.Thresholds == nil {
			g.Thresholds = map[string]int{}
		}
		g.Thresholds[t.Action] = t.Officers
	}
	g.ProposerCounts = p.ProposerCounts
	if p.Predecessor == nil {
		return nil
	}
	root, err := tlog.ParseHash(p.Predecessor.Root)
	if err != nil {
		return fmt.Errorf("predecessor.root: must be base64 of 32 bytes, as in the checkpoint")
	}
	g.Predecessor = &ceremony.Predecessor{Origin: p.Predecessor.Origin, Root: root, Size: p.Predecessor.Size}
	return nil
}

// genesis is what the plan says by itself; keys and TPM come from the devices.
func (p *Plan) genesis() (*ceremony.Genesis, error) {
	g := &ceremony.Genesis{
		Origin:   p.Origin,
		Quotas:   ceremony.Quotas{Streams: p.Quotas.Streams},
		Clock:    p.clockPolicy(),
		Seal:     p.sealPolicy(),
		Software: version(),
	}
	for _, r := range p.Roles {
		slices.Sort(r.UIDs)
		slices.Sort(r.GIDs)
		g.Roles = append(g.Roles, ceremony.Role{Name: r.Name, Any: r.Any, UIDs: slices.Compact(r.UIDs), GIDs: slices.Compact(r.GIDs)})
	}
	return g, p.officers(g)
}

func (p *Plan) clockPolicy() clock.Policy {
	c := clock.DefaultPolicy()
	set(&c.Mode, p.Clock.Mode)
	set(&c.Leap, p.Clock.Leap)
	set(&c.F, p.Clock.Faulty)
	set(&c.MinSources, p.Clock.MinSources)
	c.Strict = p.Clock.Strict
	setTime(&c.Limit, p.Clock.Limit)
	setTime(&c.Warn, p.Clock.Warn)
	setTime(&c.HoldoverMax, p.Clock.Holdover)
	setTime(&c.MaxOffset, p.Clock.MaxOffset)
	setTime(&c.Poll, p.Clock.Poll)
	c.Warn = min(c.Warn, c.Limit)
	return c
}

func (p *Plan) sealPolicy() ceremony.SealPolicy {
	s := ceremony.DefaultSealPolicy(*p.Seal.PCR)
	setTime(&s.Interval, p.Seal.Interval)
	setTime(&s.Increment, p.Seal.Increment)
	setTime(&s.Unsealed, p.Seal.Unsealed)
	if p.Seal.PCRs != nil {
		s.PCRs = p.Seal.PCRs
	}
	return s
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func setTime(to *int64, from *duration) {
	if from != nil {
		*to = int64(*from)
	}
}

// check refuses what the genesis itself cannot see: that the plan fits the configuration.
func (p *Plan) check(c *Config) (LogConfig, error) {
	for i, x := range c.PINs {
		if slices.Contains(x.PCRs, *p.Seal.PCR) {
			return LogConfig{}, fmt.Errorf("seal.pcr: PCR %d is one that pin[%d] in the configuration is sealed to: the seal PCR changes with every seal", *p.Seal.PCR, i)
		}
	}
	for _, l := range c.Logs {
		if l.Origin == p.Origin {
			return l, nil
		}
	}
	return LogConfig{}, fmt.Errorf("origin: no [[log]] in the configuration has origin %q", p.Origin)
}
