package main

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"bulla/attest"
	"bulla/ceremony"
	"bulla/record"
)

func (o *officer) policySet() *cobra.Command {
	c := new(ceremony.PolicySet)
	var set []string
	var changes string
	cmd := &cobra.Command{
		Use:   ceremony.ActionPolicySet,
		Short: "Propose another policy: of clock, seals, quotas, roles",
		Long: `policy.set proposes the policy in force with some values changed, by the names that show gives them: clock.limit, quotas.streams,
seal.interval and so on. Times are written with their unit: 500ms, 30s, 4h. What changes nothing is refused. A role is role.NAME, and who has it a list of uid:N and gid:N, or any; "" removes it.

--changes takes them from a file: TOML, or JSON if its name ends so, with only what changes.`,
		Example: "  bulla ceremony propose policy.set --set seal.interval=5s --set quotas.streams=500 --as alice\n  bulla ceremony propose policy.set --set clock.limit=800ms --set clock.holdover_max=2h --as alice\n  bulla ceremony propose policy.set --set role.auditor=uid:1001,gid:27 --as alice\n  bulla ceremony propose policy.set --changes changes.toml --as alice",
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "NAME=VALUE of what changes; may be repeated")
	cmd.Flags().StringVar(&changes, "changes", "", "file of what changes, TOML or .json")
	return o.action(cmd, &proposing{content: c, flags: []string{"set", "changes"}, build: func(g *governance) error {
		p := &g.state.Policy
		*c = ceremony.PolicySet{Clock: p.Clock, Quotas: p.Quotas, Roles: p.Roles, Seal: p.Seal}
		if len(set) == 0 && changes == "" {
			return usagef("name what changes with --set or --changes, or the whole policy with --content")
		}
		if err := applyFile(c, changes); err != nil {
			return err
		}
		for _, s := range set {
			name, value, ok := strings.Cut(s, "=")
			if !ok {
				return usagef("--set: %q is not NAME=VALUE", clipped(s))
			}
			if err := c.Set(name, value); err != nil {
				return usagef("--set: %w", err)
			}
		}
		return nil
	}})
}

// applyFile applies a file of changes to a policy.
func applyFile(c *ceremony.PolicySet, path string) error {
	if path == "" {
		return nil
	}
	b, err := readFile(path)
	if err != nil {
		return err
	}
	var tree map[string]any
	if strings.HasSuffix(path, ".json") {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		err = d.Decode(&tree)
	} else {
		err = toml.Unmarshal(b, &tree)
	}
	if err != nil {
		return usagef("%s: %w", path, err)
	}
	for _, section := range slices.Sorted(maps.Keys(tree)) {
		members, ok := tree[section].(map[string]any)
		if !ok {
			return usagef("%s: %s: a section is needed, as [seal] with interval", path, clipped(section))
		}
		for _, member := range slices.Sorted(maps.Keys(members)) {
			value, ok := members[member].(string)
			if !ok {
				b, err := json.Marshal(members[member])
				if err != nil {
					return usagef("%s: %s.%s: %w", path, clipped(section), clipped(member), err)
				}
				value = string(b)
			}
			if err := c.Set(section+"."+member, value); err != nil {
				return usagef("%s: %w", path, err)
			}
		}
	}
	return nil
}

func (o *officer) officersSet() *cobra.Command {
	c := new(ceremony.OfficersSet)
	in := &roster{}
	cmd := &cobra.Command{
		Use:   ceremony.ActionOfficersSet,
		Short: "Propose other officers, or other thresholds",
		Long: `officers.set proposes the officers and thresholds in force with some changed. Who gets a new key is removed and added with it. Of FIDO2 keys
every signature must prove touch; --verify asks for PIN or fingerprint too. A threshold is set for an action, or as default for those that
have none of their own, where 0 puts an action back to it.`,
		Example: "  bulla ceremony propose officers.set --remove carol --add dave=dave.pub --as alice\n  bulla ceremony propose officers.set --remove bob --add bob=bob-new.pub --verify bob --threshold key.rotate=3 --as alice",
	}
	f := cmd.Flags()
	f.StringArrayVar(&in.add, "add", nil, "NAME=FILE of an officer to appoint and the file of his public key; may be repeated")
	f.StringArrayVar(&in.remove, "remove", nil, "NAME of an officer who is one no longer; may be repeated")
	f.StringArrayVar(&in.verify, "verify", nil, "NAME of an officer whose FIDO2 key must prove PIN or fingerprint; may be repeated")
	f.StringArrayVar(&in.from, "from", nil, "NAME=TIME from which an officer may act; may be repeated")
	f.StringArrayVar(&in.until, "until", nil, "NAME=TIME until which an officer may act; may be repeated")
	f.StringArrayVar(&in.thresholds, "threshold", nil, "ACTION=N, or default=N, officers who must approve; may be repeated")
	f.StringVar(&in.counts, "proposer-counts", "", "whether who proposes counts among those who approve: true or false (default: as it is)")
	return o.action(cmd, &proposing{content: c, flags: []string{"add", "remove", "verify", "from", "until", "threshold", "proposer-counts"}, build: func(g *governance) error {
		return in.change(c, &g.state.Policy)
	}})
}

// roster is what changes of officers and thresholds.
type roster struct {
	add, remove, verify, from, until, thresholds []string
	counts                                       string
}

// change makes c what is in force, changed.
func (r *roster) change(c *ceremony.OfficersSet, in *ceremony.Genesis) error {
	*c = ceremony.OfficersSet{Officers: slices.Clone(in.Officers), ProposerCounts: in.ProposerCounts, Thresholds: maps.Clone(in.Thresholds)}
	if r.counts != "" {
		var err error
		if c.ProposerCounts, err = strconv.ParseBool(r.counts); err != nil {
			return usagef("--proposer-counts: must be true or false")
		}
	}
	for _, name := range r.remove {
		i := slices.IndexFunc(c.Officers, func(o ceremony.Officer) bool { return o.Name == name })
		if i < 0 {
			return usagef("--remove: %q is not an officer of this log", clipped(name))
		}
		c.Officers = slices.Delete(c.Officers, i, i+1)
	}
	if err := each("add", r.add, func(name, file string) error {
		if slices.ContainsFunc(c.Officers, func(o ceremony.Officer) bool { return o.Name == name }) {
			return usagef("--add: %s is an officer already; to appoint another key, --remove %[1]s as well", clipped(name))
		}
		o, err := appointed(name, file)
		c.Officers = append(c.Officers, o)
		return err
	}); err != nil {
		return err
	}
	if err := r.bounds(c); err != nil {
		return err
	}
	return each("threshold", r.thresholds, func(action, text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return usagef("--threshold: %q is not a number of officers", clipped(text))
		}
		if n == 0 {
			delete(c.Thresholds, action)
		} else {
			c.Thresholds[action] = n
		}
		return nil
	})
}

// bounds sets what officers must prove, and when they may act.
func (r *roster) bounds(c *ceremony.OfficersSet) error {
	find := func(flag, name string) (*ceremony.Officer, error) {
		i := slices.IndexFunc(c.Officers, func(o ceremony.Officer) bool { return o.Name == name })
		if i < 0 {
			return nil, usagef("--%s: %q would be no officer", flag, clipped(name))
		}
		return &c.Officers[i], nil
	}
	for _, name := range r.verify {
		o, err := find("verify", name)
		if err != nil {
			return err
		}
		o.Verify = true
	}
	for _, b := range []struct {
		flag   string
		values []string
		member func(*ceremony.Officer) *string
	}{
		{"from", r.from, func(o *ceremony.Officer) *string { return &o.ValidFrom }},
		{"until", r.until, func(o *ceremony.Officer) *string { return &o.ValidTo }},
	} {
		if err := each(b.flag, b.values, func(name, text string) error {
			o, err := find(b.flag, name)
			if err == nil {
				*b.member(o), err = instant(b.flag, text)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// each calls f with the two sides of values of the form NAME=VALUE.
func each(flag string, values []string, f func(name, value string) error) error {
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" || value == "" {
			return usagef("--%s: %q is not of the form NAME=VALUE", flag, clipped(v))
		}
		if err := f(name, value); err != nil {
			return err
		}
	}
	return nil
}

// appointed is an officer with the key in a file.
func appointed(name, file string) (ceremony.Officer, error) {
	b, err := readFile(file)
	if err != nil {
		return ceremony.Officer{}, err
	}
	pub, err := publicKey(b)
	if err != nil {
		return ceremony.Officer{}, usagef("%s: %w", file, err)
	}
	return ceremony.Officer{Name: name, Key: keyText(pub), Touch: isFIDO(pub.Type())}, nil
}

func (o *officer) keyGenerate() *cobra.Command {
	c := new(ceremony.KeyGenerate)
	cmd := &cobra.Command{
		Use:     ceremony.ActionKeyGenerate,
		Short:   "Propose that a device makes a key, which key.rotate may put in force",
		Long:    "key.generate proposes a new key: for log, the authoritative line of every checkpoint; for interop, its additional Ed25519 line; for pcr, which approves PCR values. It signs nothing before key.rotate puts it in force.",
		Example: "  bulla ceremony propose key.generate --purpose log --label audit-2027 --as alice",
	}
	f := cmd.Flags()
	f.StringVar(&c.Purpose, "purpose", "", "what the key is for: log, interop or pcr")
	f.StringVar(&c.Algorithm, "algorithm", "", "ecdsa-p256, ecdsa-p384 or ed25519 (default: the one for the purpose)")
	f.StringVar(&c.Label, "label", "", "label of the key in its token")
	complete(cmd, "purpose", ceremony.PurposeLog, ceremony.PurposeInterop, ceremony.PurposePCR)
	complete(cmd, "algorithm", "ecdsa-p256", "ecdsa-p384", "ed25519")
	return o.action(cmd, &proposing{content: c, flags: []string{"purpose", "algorithm", "label"}, build: func(*governance) error {
		if c.Purpose == "" {
			return usagef("--purpose: say what the key is for: log, interop or pcr")
		}
		if c.Algorithm == "" {
			c.Algorithm = map[string]string{ceremony.PurposeInterop: "ed25519"}[c.Purpose]
			c.Algorithm = cmp.Or(c.Algorithm, "ecdsa-p256")
		}
		return nil
	}})
}

func (o *officer) keyRotate() *cobra.Command {
	c := new(ceremony.KeyRotate)
	var spki string
	cmd := &cobra.Command{
		Use:   ceremony.ActionKeyRotate,
		Short: "Propose that a generated key takes the place of the one in force",
		Long: `key.rotate proposes that a key that key.generate made signs from now on. --spki names it as the minutes of that ceremony do; it may be left
out where one key only was generated for the purpose. --old says what is true of the key in force: that it signs the handover, is lost, or is
compromised, which makes receipts that it signed good only against a later head.`,
		Example: "  bulla ceremony propose key.rotate --purpose log --spki 5d1e0b6b... --as alice\n  bulla ceremony propose key.rotate --purpose log --spki 5d1e0b6b... --old compromised --as alice",
	}
	f := cmd.Flags()
	f.StringVar(&c.Purpose, "purpose", ceremony.PurposeLog, "what the key is for: log, interop or pcr")
	f.StringVar(&spki, "spki", "", "the generated key: SHA-256 of its SubjectPublicKeyInfo, in hex")
	f.StringVar(&c.Old, "old", "", "the key in force signs the handover, or is lost, or compromised; none: there is none (default: signs, or none)")
	complete(cmd, "purpose", ceremony.PurposeLog, ceremony.PurposeInterop, ceremony.PurposePCR)
	complete(cmd, "old", ceremony.OldSigns, ceremony.OldLost, ceremony.OldCompromised, ceremony.OldNone)
	return o.action(cmd, &proposing{content: c, flags: []string{"purpose", "spki", "old"}, build: func(g *governance) (err error) {
		if c.Old == "" {
			c.Old = ceremony.OldNone
			if _, ok := g.state.Key(c.Purpose); ok {
				c.Old = ceremony.OldSigns
			}
		}
		if spki != "" {
			c.SPKI, err = hexHash("spki", spki)
			return err
		}
		var found []record.Hash
		for i := range g.state.Generated {
			if k := &g.state.Generated[i]; k.Purpose == c.Purpose {
				found = append(found, k.Hash())
			}
		}
		if len(found) != 1 {
			return usagef("--spki: %d keys for %s wait to be put in force; name one%s", len(found), clipped(c.Purpose), hexList(found))
		}
		c.SPKI = found[0]
		return nil
	}})
}

func hexList(hashes []record.Hash) string {
	var b strings.Builder
	for i, h := range hashes {
		b.WriteString(map[bool]string{true: ": ", false: ", "}[i == 0] + hex.EncodeToString(h[:]))
	}
	return b.String()
}

func (o *officer) keyRetire() *cobra.Command {
	c := new(ceremony.KeyRetire)
	var spki string
	cmd := &cobra.Command{
		Use:     ceremony.ActionKeyRetire,
		Short:   "Propose that a key that is not needed any more is destroyed in its device",
		Example: "  bulla ceremony propose key.retire --spki 5d1e0b6b... --as alice",
	}
	cmd.Flags().StringVar(&spki, "spki", "", "the key: SHA-256 of its SubjectPublicKeyInfo, in hex")
	return o.action(cmd, &proposing{content: c, flags: []string{"spki"}, build: func(*governance) (err error) {
		c.SPKI, err = hexHash("spki", spki)
		return err
	}})
}

func (o *officer) tpmEnrol() *cobra.Command {
	c := new(ceremony.TPMEnrol)
	var name, ek string
	cmd := &cobra.Command{
		Use:     ceremony.ActionTPMEnrol,
		Short:   "Propose that another TPM seals the log, or the same after it was cleared",
		Example: "  bulla ceremony propose tpm.enrol --ak-name 000b5f1c... --ek 9a77... --pcr 13 --as alice",
	}
	f := cmd.Flags()
	f.StringVar(&name, "ak-name", "", "Name of the attestation key, in hex")
	f.StringVar(&ek, "ek", "", "the endorsement key: SHA-256 of its TPMT_PUBLIC, in hex")
	f.IntVar(&c.PCR, "pcr", 13, "the seal PCR")
	return o.action(cmd, &proposing{content: c, flags: []string{"ak-name", "ek", "pcr"}, build: func(*governance) (err error) {
		if c.AKName, err = hex.DecodeString(name); err != nil || name == "" {
			return usagef("--ak-name: must be the Name of the attestation key, in hex")
		}
		c.EK, err = hexHash("ek", ek)
		return err
	}})
}

func (o *officer) pcrApprove() *cobra.Command {
	c := new(ceremony.PCRApprove)
	var pcrs []string
	cmd := &cobra.Command{
		Use:     ceremony.ActionPCRApprove,
		Short:   "Propose values of PCRs with which the TPM gives out what it keeps",
		Example: "  bulla ceremony propose pcr.approve --pcr 4=3f0a... --pcr 7=b5c1... --label 'kernel 6.12.9' --as alice",
	}
	cmd.Flags().StringArrayVar(&pcrs, "pcr", nil, "N=HEX of a PCR of the SHA-256 bank and its value; may be repeated")
	cmd.Flags().StringVar(&c.Label, "label", "", "what has these values, as a kernel's version")
	return o.action(cmd, &proposing{content: c, flags: []string{"pcr", "label"}, build: func(*governance) error {
		err := each("pcr", pcrs, func(index, value string) error {
			n, err := strconv.Atoi(index)
			if err != nil {
				return usagef("--pcr: %q is not the number of a PCR", clipped(index))
			}
			h, err := hexHash("pcr", value)
			c.PCRs = append(c.PCRs, attest.PCRValue{Index: n, Value: h})
			return err
		})
		slices.SortFunc(c.PCRs, func(a, b attest.PCRValue) int { return cmp.Compare(a.Index, b.Index) })
		return err
	}})
}

func (o *officer) recoveryDeclare() *cobra.Command {
	c := new(ceremony.RecoveryDeclare)
	var known string
	var surviving uint64
	cmd := &cobra.Command{
		Use:   ceremony.ActionRecoveryDeclare,
		Short: "Propose that a log that lost entries is closed, for a successor to go on",
		Long: `recovery.declare proposes that the log ends with what it has now. --known is the highest head that anybody knows of, from a receipt, an
export, a witness: what lies between is declared lost. Proposal and approvals of a log that was rolled back wait outside it until the
enactment.

A log that was put back goes on with the daemon's own records, and may come to have as many entries as the head that is known, with another
root: a fork. --surviving then says how many entries it had when it was put back, which are what survives.`,
		Example: "  bulla ceremony propose recovery.declare --reason 'disk lost, restored from backup' --known 48211:ef0c... --successor log.example/audit-2 --as alice\n  bulla ceremony propose recovery.declare --reason 'disk lost' --known 48211:ef0c... --surviving 48190 --as alice",
	}
	f := cmd.Flags()
	f.StringVar(&c.Reason, "reason", "", "why, for people")
	f.StringVar(&c.Successor, "successor", "", "origin of the log that goes on")
	f.StringVar(&known, "known", "", "SIZE:ROOT of the highest head that is known, the root in hex or base64 (default: nothing was lost)")
	f.Uint64Var(&surviving, "surviving", 0, "SIZE of what survives, in entries: the log's first so many (default: all that it has)")
	return o.action(cmd, &proposing{content: c, flags: []string{"reason", "successor", "known", "surviving"}, build: func(g *governance) (err error) {
		if c.Reason == "" {
			return usagef("--reason: say what happened")
		}
		c.Surviving = g.head
		if cmd.Flags().Changed("surviving") {
			if surviving == 0 || surviving > g.head.Size {
				return usagef("--surviving: the log has %d entries; at least 1 survives, and at most all", g.head.Size)
			}
			if c.Surviving.Root, err = g.tree.root(surviving); err != nil {
				return err
			}
			c.Surviving.Size = surviving
		}
		if c.Known = c.Surviving; known == "" {
			return nil
		}
		if c.Known, err = parseHead(known); err != nil {
			return err
		}
		return g.forked(c)
	}})
}

// forked says what to do where a log has come to be as large as a head that is known.
func (g *governance) forked(c *ceremony.RecoveryDeclare) error {
	if c.Known.Size > c.Surviving.Size || c.Known == c.Surviving {
		return nil
	}
	if c.Known.Size == 0 {
		return usagef("--known: a head of no entries says nothing")
	}
	root, err := g.tree.root(c.Known.Size)
	switch {
	case err != nil:
		return err
	case root == c.Known.Root:
		return usagef("--known: the log has this head: nothing that it covers is lost; name a higher head, or leave --known out")
	}
	return usagef(`--known: at %d entries the log itself has the root %s: two roots at one size are a fork.
The log has %d entries now, the daemon's own records since it was put back among them. What survives is what it had then: name that with
--surviving SIZE, less than %[1]d. `+"`bulla list --kind system --limit 0`"+` shows the daemon's starts: SIZE is at most the index of the first one after the
log was put back`, c.Known.Size, root, g.head.Size)
}

// parseHead reads a head as SIZE:ROOT.
func parseHead(text string) (ceremony.Head, error) {
	size, root, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(size, 10, 53)
	if err != nil {
		return ceremony.Head{}, usagef("--known: %q is not SIZE:ROOT", clipped(text))
	}
	h, err := tlog.ParseHash(root)
	if err != nil {
		h, err = hexHash("known", root)
	}
	return ceremony.Head{Root: h, Size: n}, err
}

// complete names the values of a flag to the shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(fmt.Sprintf("no flag %s to complete", flag)) // a mistake in this file
	}
}
