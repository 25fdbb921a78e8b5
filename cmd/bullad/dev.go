package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"bulla/ceremony"
	"bulla/hsm"
	"bulla/ledger"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
)

func devCommand() *cobra.Command {
	var f devFlags
	c := &cobra.Command{
		Use:   "dev --dir DIR",
		Short: "Run a complete throwaway appliance in the foreground",
		Long: `Run a complete appliance for trying things: a SoftHSM token, a software TPM with EK certificate, NTP servers on loopback, three officers
with SSH keys, a time-stamping authority (its CA's certificate: DIR/tsa-ca.pem), and one log. DIR is made if it does not exist, and
reopened if it does. It prints "ready" when it serves DIR/sign.sock and DIR/http.sock; Ctrl-C ends it and its children. It protects
nothing: all its devices are files. DIR may be moved or copied while it is stopped.

At SIGUSR1 its devices misbehave as DIR/faults.toml says: tpm_off = true; file_size = BYTES, beyond which no file can be written, as
on a full disk; [[ntp]] for each time server, with offset = "1h" or silent = true. It prints "faults" when they do. bulla drill
uses this.`,
		Example: "  bullad dev --dir dev",
		Args: func(cmd *cobra.Command, given []string) error {
			if len(given) > 0 {
				return fmt.Errorf("the directory is named by a flag: bullad dev --dir %s", given[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			abs, err := filepath.Abs(f.dir)
			if err != nil {
				return usage(err)
			}
			f.dir = abs
			return dev(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&f.dir, "dir", "", "directory of the appliance")
	c.Flags().BoolVar(&f.tpmKey, "tpm-key", false, "sign the log with a key in the TPM instead of the HSM")
	c.Flags().IntVar(&f.logs, "logs", 1, "how many logs a new appliance gets")
	c.Flags().StringVar(&f.profile, "profile", "", "directory for profiles of the daemon, written when it ends")
	c.Flags().BoolVar(&f.clear, "clear-tpm", false, "clear the TPM first, as root could have while the appliance was stopped")
	c.Flags().DurationVar(&f.delay, "hsm-delay", 0, "how much longer the HSM takes for a signature")
	must(c.MarkFlagRequired("dir"))
	c.AddCommand(devSignCommand())
	return c
}

// devFlags is what `bullad dev` is told.
type devFlags struct {
	dir     string
	tpmKey  bool
	logs    int
	profile string        // directory; empty: no profiles
	delay   time.Duration // of each signature
	clear   bool          // the TPM
}

func (f *devFlags) check(fresh bool) error {
	switch {
	case f.delay < 0:
		return usagef("--hsm-delay: must not be negative")
	case f.logs < 1 || f.logs > devLogs || f.tpmKey && f.logs > 1:
		return usagef("--logs: must be 1 to %d, and 1 with --tpm-key", devLogs)
	case f.clear && fresh:
		return usagef("--clear-tpm: %s holds no dev appliance", f.dir)
	}
	return nil
}

const (
	devSources = 5
	devLogs    = 16
	devOrigin  = "bulla.example/dev"
	devName    = "dev"
	devTPMKey  = "tpm:handle=0x81020001"
)

var devOfficers = []string{"alice", "bob", "carol"}

// throwaway is a dev appliance's directory and what runs in it.
type throwaway struct {
	dir     string
	hsm     *softhsmtest.SoftHSM
	tpm     *softhsmtest.TPM
	servers []*softhsmtest.NTP
	tpmOff  bool
}

func (t *throwaway) path(name string) string { return filepath.Join(t.dir, name) }

// dev makes or reopens the appliance and serves it.
func dev(ctx context.Context, f devFlags, out io.Writer) (err error) {
	t := &throwaway{dir: f.dir}
	defer func() { err = errors.Join(err, t.close()) }()
	_, statErr := os.Stat(t.path("bullad.toml"))
	fresh := errors.Is(statErr, fs.ErrNotExist)
	if err := f.check(fresh); err != nil {
		return err
	}
	if fresh {
		err = t.create(ctx)
	} else {
		err = t.open(ctx)
	}
	if err != nil {
		return err
	}
	if f.clear {
		if err := t.clearTPM(); err != nil {
			return err
		}
	}
	if err := t.configure(f, fresh); err != nil {
		return err
	}
	cfg, err := loadConfig(t.path("bullad.toml"))
	if err != nil {
		return err
	}
	if err := t.certify(ctx, cfg); err != nil {
		return err
	}
	if err := t.initialize(ctx, cfg, out); err != nil {
		return err
	}
	if err := t.writePolicy(cfg.Logs); err != nil {
		return err
	}
	cfg.signDelay = f.delay
	if f.profile != "" {
		p, err2 := startProfiles(f.profile)
		if err2 != nil {
			return err2
		}
		defer func() { err = errors.Join(err, p.stop()) }()
	}
	return t.serve(ctx, cfg, &lineWriter{w: out})
}

// serve runs the appliance, and has its devices misbehave when it is told to.
func (t *throwaway) serve(ctx context.Context, cfg *Config, out *lineWriter) error {
	ask := make(chan os.Signal, 1)
	signal.Notify(ask, syscall.SIGUSR1)
	defer signal.Stop(ask)
	ctx, cancel := context.WithCancel(ctx)
	var faults sync.WaitGroup
	faults.Go(func() { t.faults(ctx, ask, out) })
	err := serve(ctx, t.path("bullad.toml"), cfg, newLog(false), func() { fmt.Fprintln(out, "ready") })
	cancel()
	faults.Wait()
	return err
}

// lineWriter lets several goroutines print whole lines.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// initialize makes the logs that are not there, and has the officers approve them.
func (t *throwaway) initialize(ctx context.Context, cfg *Config, out io.Writer) error {
	for i, l := range cfg.Logs {
		if _, err := os.Stat(l.File); err == nil {
			return nil // they are made together
		}
		p, err := loadPlan(t.path(numbered("genesis", i, ".toml")))
		if err != nil {
			return err
		}
		if err := initialize(ctx, cfg, p, false, out); err != nil {
			return err
		}
	}
	return t.approve(ctx, cfg)
}

// numbered is the name of something of the i-th log; the first has no number.
func numbered(name string, i int, suffix string) string {
	if i == 0 {
		return name + suffix
	}
	return fmt.Sprintf("%s%d%s", name, i+1, suffix)
}

// create makes the devices of a new appliance.
func (t *throwaway) create(ctx context.Context) (err error) {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return usage(err)
	}
	if names, err := os.ReadDir(t.dir); err != nil || len(names) > 0 {
		return usagef("%s is not empty and holds no dev appliance: name another directory (%v)", t.dir, err)
	}
	if t.hsm, err = softhsmtest.CreateSoftHSM(t.path("hsm")); err != nil {
		return err
	}
	if _, err := t.hsm.InitToken(ctx, "dev"); err != nil {
		return err
	}
	if err := os.Mkdir(t.path("officers"), 0o700); err != nil {
		return err
	}
	for _, name := range devOfficers {
		if _, err := softhsmtest.CreateOfficer(t.path("officers"), name); err != nil {
			return err
		}
	}
	if t.tpm, err = softhsmtest.CreateTPM(ctx, t.path("tpm")); err != nil {
		return err
	}
	return t.startServers()
}

// open starts the devices of an existing appliance.
func (t *throwaway) open(ctx context.Context) (err error) {
	if t.hsm, err = softhsmtest.OpenSoftHSM(t.path("hsm")); err != nil {
		return err
	}
	if t.tpm, err = softhsmtest.OpenTPM(ctx, t.path("tpm")); err != nil {
		return err
	}
	return t.startServers()
}

func (t *throwaway) startServers() error {
	for range devSources {
		s, err := softhsmtest.StartNTP(softhsmtest.Behaviour{})
		if err != nil {
			return err
		}
		t.servers = append(t.servers, s)
	}
	return nil
}

// configure writes bullad.toml, whose time sources have new addresses at each start, and a genesis.toml for each log.
func (t *throwaway) configure(f devFlags, fresh bool) error {
	logs, check := t.newLogs(f), SelfCheckConfig{}
	if !fresh { // they stay what they were
		old, err := loadConfig(t.path("bullad.toml"))
		if err != nil {
			return err
		}
		if logs, err = t.oldLogs(old); err != nil {
			return err
		}
		check = old.SelfCheck
	}
	cfg := Config{
		State:   t.dir,
		Sockets: SocketsConfig{Directory: t.dir},
		TPM:     TPMConfig{Device: t.tpm.Address(), Roots: t.tpm.Roots()},
		Logs:    logs,
		TSA:     t.tsaConfig(),

		SelfCheck: check,
	}
	for i, s := range t.servers {
		cfg.Clock.Sources = append(cfg.Clock.Sources, SourceConfig{Name: fmt.Sprintf("ntp%d", i+1), Address: s.Address})
	}
	b, err := toml.Marshal(&cfg)
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.path("bullad.toml"), b, 0o600); err != nil {
		return err
	}
	if !fresh {
		return nil
	}
	for i, l := range logs {
		if err := t.writePlan(numbered("genesis", i, ".toml"), l.Origin); err != nil {
			return err
		}
	}
	return nil
}

// newLogs are the logs of a new appliance.
func (t *throwaway) newLogs(f devFlags) []LogConfig {
	logs := make([]LogConfig, f.logs)
	for i := range logs {
		logs[i] = LogConfig{
			Name: numbered(devName, i, ""), Origin: numbered(devOrigin, i, ""), File: t.path(numbered(devName, i, ".db")),
			Key: t.hsm.URI("dev", numbered("log", i, "")), Interop: t.hsm.URI("dev", numbered("log", i, "-ed25519")),
		}
		if f.tpmKey {
			logs[i].Key, logs[i].Interop = devTPMKey, ""
		}
	}
	return logs
}

// oldLogs are the logs of an existing appliance, where they are now: its directory may have been moved, or be a copy.
func (t *throwaway) oldLogs(old *Config) (logs []LogConfig, err error) {
	logs = old.Logs
	for i := range logs {
		l := &logs[i]
		if l.File, err = t.moved(old.State, l.File); err != nil {
			return nil, err
		}
		for _, key := range []*string{&l.Key, &l.Interop} {
			if !strings.HasPrefix(*key, "pkcs11:") {
				continue
			}
			u, err := hsm.ParseURI(*key)
			if err != nil {
				return nil, usage(err)
			}
			pin, err := t.moved(old.State, strings.TrimPrefix(u.PINSource, "file:"))
			if err != nil {
				return nil, err
			}
			u.PINSource = "file:" + pin
			*key = u.String()
		}
	}
	return logs, nil
}

// moved is where a file of the appliance is that was in the directory from.
func (t *throwaway) moved(from, path string) (string, error) {
	rel, err := filepath.Rel(from, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", usagef("%s: %s is not in %s: bullad dev runs what it made itself", t.path("bullad.toml"), path, from)
	}
	return t.path(rel), nil
}

// writePlan writes the plan of a log's genesis.
func (t *throwaway) writePlan(name, origin string) error {
	plan := fmt.Sprintf("origin = %q\nproposer_counts = true\n\n[tpm]\nauth = %q\n", origin, leaveOpen)
	for _, name := range devOfficers {
		o, err := softhsmtest.OpenOfficer(t.path("officers"), name)
		if err != nil {
			return err
		}
		plan += fmt.Sprintf("\n[[officer]]\nname = %q\nkey = %q\n", name, o.Key)
	}
	for _, action := range []string{ceremony.Default, ceremony.ActionGenesis} {
		plan += fmt.Sprintf("\n[[threshold]]\naction = %q\nofficers = 2\n", action)
	}
	for _, role := range []string{ceremony.Producer, ceremony.Auditor, ceremony.Operator} {
		plan += fmt.Sprintf("\n[[role]]\nname = %q\nany = true\n", role)
	}
	return os.WriteFile(t.path(name), []byte(plan), 0o600)
}

// approve has the officers approve each genesis, as bulla ceremony approve --genesis would.
func (t *throwaway) approve(ctx context.Context, cfg *Config) (err error) {
	a, err := openAppliance(ctx, t.path("bullad.toml"), cfg, newLog(false))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	for _, l := range a.logs {
		if err := t.approveLog(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (t *throwaway) approveLog(ctx context.Context, l *openLog) error {
	document, err := ceremony.GenesisDocument(l.Ledger.Origin(), l.State().Genesis)
	if err != nil {
		return err
	}
	for _, name := range devOfficers {
		o, err := softhsmtest.OpenOfficer(t.path("officers"), name)
		if err != nil {
			return err
		}
		signer, err := o.Signer()
		if err != nil {
			return err
		}
		signature, err := ceremony.Sign(rand.Reader, document, ceremony.Approve, signer)
		if err != nil {
			return err
		}
		body, err := record.MarshalCanonical(&ceremony.Approval{Decision: ceremony.Approve, Document: ceremony.DocumentHash(document), Officer: name, Signature: signature})
		if err != nil {
			return err
		}
		if _, err := l.Govern(ctx, ledger.Governing{Kind: record.KindApproval, Body: body}); err != nil {
			return err
		}
	}
	return nil
}

// writePolicy writes what the auditor trusts: each log's verifier keys and genesis, as they are on this machine.
func (t *throwaway) writePolicy(logs []LogConfig) error {
	text := []byte("# What an auditor trusts of this dev appliance.\n")
	for _, l := range logs {
		entry, err := genesisEntry(l.File)
		if err != nil {
			return err
		}
		state, err := genesisState(entry)
		if err != nil {
			return err
		}
		vkeys, err := state.VKeys()
		if err != nil {
			return err
		}
		for _, v := range vkeys {
			text = fmt.Appendf(text, "log %s\n", v)
		}
		of := "" // there is only one
		if len(logs) > 1 {
			of = " " + l.Origin
		}
		leaf := record.LeafHash(entry)
		text = fmt.Appendf(text, "genesis %x%s\n", leaf[:], of)
	}
	return os.WriteFile(t.path("auditor.policy"), append(text, "quorum none\n"...), 0o600)
}

// close ends the devices.
func (t *throwaway) close() error {
	var errs []error
	for _, s := range t.servers {
		errs = append(errs, s.Close())
	}
	if t.tpm != nil {
		errs = append(errs, t.tpm.Stop())
	}
	return errors.Join(errs...)
}
