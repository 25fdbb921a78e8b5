package softhsmtest_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	softhsmtest "bulla/softhsm-test"
)

// life is an appliance that people make and govern by the scripts of docs/ceremonies.md. The page's paths are in its directory.
type life struct {
	*rig                  // its own TPM is that of a twin machine
	own  *softhsmtest.TPM // the appliance's
	key  string           // the log's, whose PIN is in the file pin
	pin  []byte           // of the token

	work   string           // where people keep their files
	agent  string           // ssh-agent's socket
	tool   *softhsmtest.TPM // that commands of tpm2-tools use
	daemon *child
	page   []section
}

// section is what stands between two headings of the page.
type section struct {
	heading string
	scripts []string
}

// readPage reads the scripts of the page.
func readPage(t *testing.T) (out []section) {
	t.Helper()
	b, err := os.ReadFile("../docs/ceremonies.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```sh\n(.*?)^```")
	for _, text := range strings.Split(string(b), "\n## ")[1:] {
		s := section{}
		s.heading, text, _ = strings.Cut(text, "\n")
		for _, script := range block.FindAllStringSubmatch(text, -1) {
			s.scripts = append(s.scripts, script[1])
		}
		if len(s.scripts) == 0 {
			t.Fatalf("nothing to do under the heading %q", s.heading)
		}
		out = append(out, s)
	}
	return out
}

// newLife prepares a machine on which no log was made yet, to follow those sections of the page that wanted reports.
func newLife(t *testing.T, wanted func(heading string) bool) *life {
	t.Helper()
	l := &life{rig: newRig(t)}
	for _, s := range readPage(t) {
		if wanted(s.heading) {
			l.page = append(l.page, s)
		}
	}
	for _, dir := range []string{"state", "work", "media", "home/.ssh"} {
		if err := os.MkdirAll(l.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l.work = l.path("work")
	var err error
	if l.own, err = softhsmtest.CreateTPM(t.Context(), l.path("t2")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.own.Kill(); err != nil {
			t.Error(err)
		}
	})
	l.plug(l.own)
	l.pin = readFile(t, l.path("hsm/dev.pin"))
	l.key = strings.NewReplacer("object=log", "object=audit", l.path("hsm/dev.pin"), l.path("pin")).Replace(l.config.Logs[0].Key)
	l.writePIN()
	l.configure()
	l.appointFirst()
	return l
}

// configure writes the configuration: of one log, whose token has its PIN in a file, and of a PIN that the TPM may keep instead.
func (l *life) configure() {
	l.t.Helper()
	if err := os.WriteFile(l.path("roots.pem"), append(readFile(l.t, l.own.Roots()), readFile(l.t, l.tpm.Roots())...), 0o600); err != nil {
		l.t.Fatal(err)
	}
	c := &l.config
	c.State, c.TPM = l.path("state"), map[string]any{"device": "unix:" + l.path("tpm0"), "roots": l.path("roots.pem")}
	c.Logs = []logConfig{{Name: "audit", Origin: "example.org/audit", File: l.path("audit.db"), Key: l.key}}
	c.PINs = []map[string]any{{"file": l.path("state/pin.json"), "approver": strings.Replace(l.key, "object=audit", "object=pcr-approval", 1), "pcrs": []int{0, 2, 4, 7}}}
	l.write("bullad.toml", c)
}

// writePIN puts the token's PIN where its source is.
func (l *life) writePIN() {
	l.t.Helper()
	if err := os.WriteFile(l.path("pin"), l.pin, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// appointFirst writes the plan of the genesis, and has the officers' keys in their places.
func (l *life) appointFirst() {
	l.t.Helper()
	l.agent = l.path("agent")
	agent := startChild(l.t, nil, "ssh-agent", "-D", "-a", l.agent)
	l.t.Cleanup(agent.kill)
	requireSoon(l.t, func() error { _, err := os.Stat(l.agent); return err })
	l.plan("genesis.toml", "example.org/audit", "alice", "bob", "carol")
	l.sh("cd ../officers; ssh-add -q alice bob carol")
	if err := os.WriteFile(l.path("home/.ssh/id_ed25519"), readFile(l.t, l.path("officers/carol")), 0o600); err != nil {
		l.t.Fatal(err)
	}
	for _, name := range []string{"dave", "bob-new"} {
		o, err := softhsmtest.CreateOfficer(l.path("officers"), name)
		if err == nil {
			err = os.WriteFile(filepath.Join(l.work, name+".pub"), []byte(o.Key+"\n"), 0o600)
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

// plan writes the plan of a log that is governed by three officers: two are needed, and all for the genesis.
func (l *life) plan(file, origin string, officers ...string) {
	l.t.Helper()
	text := "proposer_counts = true\n" + plan(origin) + fmt.Sprintf("[tpm]\nauth = %q\n", l.path("media/tpm-auth.toml"))
	for action, n := range map[string]int{"default": 2, "genesis": 3} {
		text += fmt.Sprintf("[[threshold]]\naction = %q\nofficers = %d\n", action, n)
	}
	for _, name := range officers {
		o, err := softhsmtest.OpenOfficer(l.path("officers"), name)
		if err != nil {
			l.t.Fatal(err)
		}
		text += fmt.Sprintf("[[officer]]\nname = %q\nkey = %q\n", strings.TrimSuffix(name, "-new"), o.Key)
	}
	if err := os.WriteFile(l.path(file), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// plug makes a TPM the machine's.
func (l *life) plug(tpm *softhsmtest.TPM) {
	l.t.Helper()
	if err := os.Remove(l.path("tpm0")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.Fatal(err)
	}
	if err := os.Symlink(strings.TrimPrefix(tpm.Address(), "unix:"), l.path("tpm0")); err != nil {
		l.t.Fatal(err)
	}
	l.tool = tpm
}

// follow runs the next script of the page as it stands. It must be under the heading.
func (l *life) follow(heading string) {
	l.t.Helper()
	if len(l.page) == 0 || l.page[0].heading != heading {
		l.t.Fatalf("no script under %q is next", heading)
	}
	script := l.page[0].scripts[0]
	if l.page[0].scripts = l.page[0].scripts[1:]; len(l.page[0].scripts) == 0 {
		l.page = l.page[1:]
	}
	script = strings.NewReplacer("/etc/bulla/", l.dir+"/", "/var/lib/bulla/", l.path("state")+"/", "/media/officers/", l.path("media")+"/", "/run/pin", l.path("pin")).Replace(script)
	var lines strings.Builder
	for line := range strings.Lines(script) {
		does, isService := strings.CutPrefix(line, "systemctl ")
		if !isService {
			lines.WriteString(line)
			continue
		}
		l.sh(lines.String())
		lines.Reset()
		switch does {
		case "start bullad\n":
			l.start()
		case "stop bullad\n":
			l.stop()
		default:
			l.t.Fatalf("systemctl %s", does)
		}
	}
	l.sh(lines.String())
}

// requireFollowed fails if the page has more to do.
func (l *life) requireFollowed() {
	l.t.Helper()
	if len(l.page) > 0 {
		l.t.Errorf("these scripts were not run: %v", l.page)
	}
}

// sh runs commands as people type them.
func (l *life) sh(lines string) {
	l.t.Helper()
	program(l.t, "bullad")
	cmd := exec.CommandContext(l.t.Context(), "bash", "-euo", "pipefail", "-c", lines)
	cmd.Dir = l.work
	cmd.Env = append(os.Environ(), "BULLA_SOCKET="+l.path("sign.sock"), "SSH_AUTH_SOCK="+l.agent, "SOFTHSM2_CONF="+l.path("hsm/softhsm2.conf"), "HOME="+l.path("home"),
		"TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(l.tool.Address(), "unix:"), "PATH="+filepath.Dir(program(l.t, "bulla"))+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("%v\n%s\n%s", err, lines, out)
	}
}

// start starts the daemon with the configuration as it is. It serves officers when it knows the time.
func (l *life) start() {
	l.t.Helper()
	l.daemon = l.bullad("serve", "--config", l.path("bullad.toml"))
	w := browse(l.t, l.dir)
	requireSoon(l.t, func() error {
		select {
		case <-l.daemon.done:
			l.t.Fatalf("bullad serve ended (%v):\n%s", l.daemon.cmd.ProcessState, l.daemon.stderr)
		default:
		}
		return l.ready(w)
	})
}

// stop ends the daemon, if it runs.
func (l *life) stop() {
	l.t.Helper()
	if l.daemon == nil {
		return
	}
	if code := l.daemon.stop(); code != 0 {
		l.t.Errorf("exit code %d:\n%s", code, l.daemon.stderr)
	}
	l.daemon = nil
}

// configureSuccessor adds the log that succeeds to the configuration, and writes its plan.
func (l *life) configureSuccessor() {
	l.t.Helper()
	const name, origin = "audit-2", "example.org/audit-2"
	c := logConfig{Name: name, Origin: origin, File: l.path("audit-2.db"), Key: strings.NewReplacer("object=audit", "object=successor", "file:"+l.path("pin"), "tpm:"+l.path("state/pin.json")).Replace(l.key)}
	l.plan("genesis-2.toml", origin, "alice", "bob-new", "dave")
	text := fmt.Appendf(readFile(l.t, l.path("bullad.toml")), "\n[[log]]\nname = %q\norigin = %q\nfile = %q\nkey = %q\n", c.Name, c.Origin, c.File, c.Key)
	if err := os.WriteFile(l.path("bullad.toml"), text, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// newMachine puts a token that works in the place of the lost one. Nothing is left of the log but its export, and its keys in the TPM.
func (l *life) newMachine() {
	l.t.Helper()
	if err := errors.Join(os.RemoveAll(l.path("hsm/tokens")), os.RemoveAll(l.path("state")), os.Remove(l.path("audit.db"))); err != nil {
		l.t.Fatal(err)
	}
	for _, dir := range []string{"hsm/tokens", "state"} {
		if err := os.Mkdir(l.path(dir), 0o700); err != nil {
			l.t.Fatal(err)
		}
	}
	l.sh("softhsm2-util --init-token --free --label dev --so-pin 12345678 --pin $(cat " + l.path("pin") + ")")
	l.config.Logs[0].Origin = "example.org/audit-2"
	l.write("bullad.toml", l.config)
	l.plan("genesis-2.toml", "example.org/audit-2", "alice", "bob", "carol")
}
