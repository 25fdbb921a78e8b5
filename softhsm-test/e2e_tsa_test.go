package softhsmtest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"bulla/api"
	"bulla/record"
	softhsmtest "bulla/softhsm-test"
	"bulla/verify"
)

// stampClient asks for time-stamps as the users of one do, by openssl and curl, in a directory of its own.
type stampClient struct {
	t      *testing.T
	dir    string
	socket string // http.sock; empty: url is of the network
	url    string
	ca     string // certificate that tokens must lead to
}

func newStampClient(t *testing.T, dir string) *stampClient {
	t.Helper()
	c := &stampClient{t: t, dir: t.TempDir(), socket: filepath.Join(dir, "http.sock"), url: "http://bulla/tsa", ca: filepath.Join(dir, "tsa-ca.pem")}
	if err := os.WriteFile(filepath.Join(c.dir, "document"), []byte(rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// sh runs a script in the client's directory.
func (c *stampClient) sh(script string, env ...string) (string, error) {
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), append(env, "SOCKET="+c.socket, "URL="+c.url, "CA="+c.ca)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ask sends a request; of its options, -sha384 or -cert.
func (c *stampClient) ask(options string) error {
	via := `--unix-socket "$SOCKET"`
	if c.socket == "" {
		via = ""
	}
	out, err := c.sh(`openssl ts -query -data document ` + options + ` 2>/dev/null | tee query.tsq |
		curl -sS --fail-with-body ` + via + ` -H 'Content-Type: application/timestamp-query' --data-binary @- "$URL" >reply.tsr`)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// stamp asks for a time-stamp, has openssl verify it, and returns the hash of the token.
func (c *stampClient) stamp(options string) (record.Hash, error) {
	if err := c.ask(options); err != nil {
		return record.Hash{}, err
	}
	out, err := c.sh(`openssl ts -verify -queryfile query.tsq -in reply.tsr -CAfile "$CA"
		openssl ts -verify -data document -in reply.tsr -CAfile "$CA"
		openssl ts -reply -in reply.tsr -token_out -out token.der`)
	if err != nil || strings.Count(out, "Verification: OK\n") != 2 {
		reply, _ := c.sh("openssl ts -reply -in reply.tsr -text")
		return record.Hash{}, fmt.Errorf("%w: %s\n%s", errors.Join(err, errors.New("not verified")), out, reply)
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "token.der"))
	return sha256.Sum256(token), err
}

func (c *stampClient) requireStamp(options string) record.Hash {
	c.t.Helper()
	h, err := c.stamp(options)
	if err != nil {
		c.t.Fatal(err)
	}
	return h
}

// rejected asks for a time-stamp and returns why openssl says that there is none.
func (c *stampClient) rejected(options string) (string, error) {
	if err := c.ask(options); err != nil {
		return "", err
	}
	out, err := c.sh("openssl ts -reply -in reply.tsr -text")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	if !strings.Contains(out, "Status: Rejected.") || !strings.Contains(out, "TST info:\nNot included.") {
		return "", fmt.Errorf("it is no rejection: %s", out)
	}
	if out, err := c.sh(`openssl ts -verify -queryfile query.tsq -in reply.tsr -CAfile "$CA"`); err == nil {
		return "", fmt.Errorf("a rejection is verified: %s", out)
	}
	return regexp.MustCompile(`Failure info: (.*)`).FindStringSubmatch(out)[1], nil
}

// tokens are the entries of kind token in the log, by the hash of their token.
func (w *web) tokens(t *testing.T) map[record.Hash]*record.Token {
	t.Helper()
	found := map[record.Hash]*record.Token{}
	for next := "0"; next != ""; {
		var page struct {
			Entries []json.RawMessage `json:"entries"`
			Next    json.Number       `json:"next"`
		}
		w.getJSON(t, w.prefix+"/v1/entries?kind=token&limit=1000&from="+next, &page)
		for _, b := range page.Entries {
			e, err := record.ParseEntry(bytes.TrimSpace(compact(t, b)))
			if err != nil {
				t.Fatal(err)
			}
			token, err := record.ParseToken(e.Body)
			if err != nil {
				t.Fatal(err)
			}
			found[token.Token] = token
		}
		next = page.Next.String()
	}
	return found
}

func compact(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestTimestamps has openssl ask a throwaway appliance for time-stamps and verify them, and an auditor find their entries. What is wrong
// with a request, and what keeps the appliance from answering, is a rejection that openssl understands.
func TestTimestamps(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	daemon := startDev(t, dir)
	policy := readPolicy(t, dir)
	c, w := newStampClient(t, dir), browse(t, dir)
	given := map[record.Hash]bool{}
	for _, options := range []string{"-cert", "-sha256 -cert", "-sha384 -cert", "-sha512 -cert", "-no_nonce -cert", "-tspolicy 1.3.6.1.4.1.32473.1 -cert"} {
		given[c.requireStamp(options)] = true
	}
	if err := c.ask("-sha256"); err != nil { // the verifier has the certificate
		t.Fatal(err)
	}
	if out, err := c.sh(`openssl ts -verify -queryfile query.tsq -in reply.tsr -CAfile "$CA" -untrusted ` + filepath.Join(dir, "tsa.pem")); err != nil || !strings.Contains(out, "Verification: OK") {
		t.Errorf("without certificates in it: %v %s", err, out)
	}
	for options, want := range map[string]string{
		"-sha1": "unrecognized or unsupported algorithm identifier", "-md5": "unrecognized or unsupported algorithm identifier",
		"-sha3-256": "unrecognized or unsupported algorithm identifier", "-tspolicy 1.2.3 -sha256": "the requested TSA policy is not supported by the TSA",
	} {
		if why, err := c.rejected(options); err != nil || why != want {
			t.Errorf("openssl ts -query %s: %q, %v", options, why, err)
		}
	}
	tokens, away := filepath.Join(dir, "hsm/tokens"), filepath.Join(dir, "hsm/away")
	if err := os.Rename(tokens, away); err != nil {
		t.Fatal(err)
	}
	requireSoon(t, func() error {
		why, err := c.rejected("-sha256 -cert")
		if err == nil && why != "the request cannot be handled due to system failure" {
			err = errors.New(why)
		}
		return err
	})
	if err := errors.Join(os.RemoveAll(tokens), os.Rename(away, tokens)); err != nil {
		t.Fatal(err)
	}
	requireSoon(t, func() error {
		h, err := c.stamp("-sha256 -cert")
		given[h] = err == nil
		return err
	})
	delete(given, record.Hash{})

	recorded := w.tokens(t)
	for h := range given {
		if recorded[h] == nil {
			t.Errorf("the log does not have token %x", h[:])
		}
	}
	if len(recorded) < len(given)+1 {
		t.Errorf("%d tokens were given, %d recorded", len(given)+1, len(recorded))
	}
	w.requireSeal(t)
	w.requireVerified(t, policy)
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
	again := startDev(t, dir) // with the same certificate
	serials := map[string]bool{}
	c.requireStamp("-sha256 -cert")
	for _, token := range w.tokens(t) {
		if serials[token.Serial] {
			t.Errorf("serial number %s twice", token.Serial)
		}
		serials[token.Serial] = true
	}
	if code := again.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, again.stderr)
	}
}

// stampRig is a rig with an authority, a log of its own with a policy of its own, and no TPM.
type stampRig struct {
	*rig
	tsa     map[string]any
	servers []*softhsmtest.NTP
}

// newStampRig makes it; the clock's settings are lines of a plan. [tsa] names a key that is not there yet.
func newStampRig(t *testing.T, clock string) *stampRig {
	t.Helper()
	r := &stampRig{rig: newRig(t)}
	first := r.config.Logs[0]
	r.config.State, r.config.TPM = r.path("alone"), nil
	if err := os.Mkdir(r.config.State, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range r.config.Clock.Sources {
		s := softhsmtest.NTPFor(t, softhsmtest.Behaviour{})
		r.servers = append(r.servers, s)
		r.config.Clock.Sources[i]["address"] = s.Address
	}
	l := logConfig{Name: "stamps", Origin: "bulla.example/stamps", File: r.path("stamps.db"), Key: strings.Replace(first.Key, "object=log", "object=stamps", 1)}
	r.config.Logs = []logConfig{l}
	r.tsa = map[string]any{
		"key": strings.Replace(first.Key, "object=log", "object=stamps-tsa", 1), "certificate": r.path("tsa.pem"), "policy": "1.3.6.1.4.1.32473.7", "log": "stamps",
	}
	if err := os.WriteFile(r.path("stamps.toml"), []byte(plan(l.Origin)+"\n[clock]\n"+clock), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := r.bullad("init", "--config", r.configure(), "--plan", r.path("stamps.toml")); c.exit() != 0 {
		t.Fatalf("bullad init: %s", c.stderr)
	}
	return r
}

// configure writes the configuration and returns its path.
func (r *stampRig) configure() string {
	r.t.Helper()
	return r.write("stamps-config.toml", struct {
		config
		TSA map[string]any `toml:"tsa"`
	}{r.config, r.tsa})
}

// serve runs the appliance until it takes events.
func (r *stampRig) serve() *child {
	r.t.Helper()
	c := r.bullad("serve", "--config", r.configure())
	w := browse(r.t, r.dir)
	requireSoon(r.t, func() error {
		select {
		case <-c.done:
			r.t.Fatalf("bullad serve ended (%v):\n%s", c.cmd.ProcessState, c.stderr)
		default:
		}
		status, b, err := w.do(r.t.Context(), "GET", "/health/ready", "", "")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("GET /health/ready: %d %s", status, b)
		}
		return err
	})
	return c
}

// request has bullad make the authority's key and a request for its certificate.
func (r *stampRig) request(args ...string) *x509.CertificateRequest {
	r.t.Helper()
	c := r.bullad(append([]string{"tsa-request", "--config", r.configure(), "--name", "Example TSA"}, args...)...)
	var text strings.Builder
	for line := range c.lines {
		fmt.Fprintln(&text, line)
	}
	if c.exit() != 0 {
		r.t.Fatalf("bullad tsa-request: %s", c.stderr)
	}
	block, _ := pem.Decode([]byte(text.String()))
	if block == nil {
		r.t.Fatalf("bullad tsa-request printed %q", text.String())
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return request
}

// certify has an authority issue a certificate, changed as a test wants it, and leaves both where the configuration and clients look.
func (r *stampRig) certify(request *x509.CertificateRequest, change func(*x509.Certificate)) {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: request.Subject, KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: request.Extensions,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	if change != nil {
		change(leaf)
	}
	for _, c := range []struct {
		name     string
		template *x509.Certificate
		public   any
	}{{"tsa-ca.pem", ca, key.Public()}, {"tsa.pem", leaf, request.PublicKey}} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, ca, c.public, key)
		if err == nil {
			err = os.WriteFile(r.path(c.name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// policy is what an auditor trusts of the rig's log, which is not sealed.
func (r *stampRig) policy(w *web) *verify.Policy {
	r.t.Helper()
	var status api.Status
	w.getJSON(r.t, "/v1/status", &status)
	p := &verify.Policy{VKeys: status.Logs[0].VKeys, Genesis: map[string]record.Hash{}, NoSeals: true}
	var genesis record.Hash
	if n, err := hex.Decode(genesis[:], []byte(status.Logs[0].Genesis)); err != nil || n != len(genesis) {
		r.t.Fatalf("genesis %q: %v", status.Logs[0].Genesis, err)
	}
	p.Genesis[status.Logs[0].Origin] = genesis
	return p
}

// TestTimestampsNeedTime takes every time source away. Within the policy's holdover there are tokens, with an accuracy that grows; after it
// there is a rejection, and no token, until the sources are back. The key is on P-384.
func TestTimestampsNeedTime(t *testing.T) {
	t.Parallel()
	r := newStampRig(t, "poll = \"1s\"\nholdover = \"4s\"\n")
	r.certify(r.request("--algorithm", "ecdsa-p384"), nil)
	daemon := r.serve()
	c, w := newStampClient(t, r.dir), browse(t, r.dir)
	given := map[record.Hash]bool{c.requireStamp("-sha384 -cert"): true}
	if out, err := c.sh("openssl asn1parse -inform DER -in token.der"); err != nil || !strings.Contains(out, ":ecdsa-with-SHA384") {
		t.Errorf("the token is not signed with P-384: %v\n%s", err, out)
	}
	for _, s := range r.servers {
		s.Set(softhsmtest.Behaviour{Silent: true})
	}
	rejections := 0
	requireSoon(t, func() error {
		h, err := c.stamp("-sha256 -cert")
		if err == nil {
			given[h] = true
			return errors.New("there are tokens still")
		}
		why, err := c.rejected("-sha256 -cert")
		if err == nil && why != "the TSA's time source is not available" {
			t.Fatalf("rejected: %s", why)
		}
		rejections++
		return err
	})
	if len(given) < 3 {
		t.Errorf("%d tokens in holdover", len(given)-1)
	}
	states := map[string]int{}
	for _, token := range w.tokens(t) {
		states[token.Reading.State.String()]++
	}
	if states["holdover"] == 0 || states["synced"] == 0 || len(states) != 2 {
		t.Errorf("tokens by the state of the clock: %v", states)
	}
	before := len(w.tokens(t))
	for range 5 {
		if why, err := c.rejected("-sha256 -cert"); err != nil || why != "the TSA's time source is not available" {
			t.Errorf("rejected: %q, %v", why, err)
		}
	}
	if after := len(w.tokens(t)); after != before {
		t.Errorf("%d rejections made %d entries", rejections+5, after-before)
	}
	for _, s := range r.servers {
		s.Set(softhsmtest.Behaviour{Offset: 20 * time.Millisecond})
	}
	requireSoon(t, func() error {
		h, err := c.stamp("-sha256 -cert")
		given[h] = err == nil
		return err
	})
	delete(given, record.Hash{})
	recorded := w.tokens(t)
	for h := range given {
		if recorded[h] == nil {
			t.Errorf("the log does not have token %x", h[:])
		}
	}
	w.requireVerified(t, r.policy(w))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// TestTimestampsOfTheNetwork asks over TCP, and cuts the daemon off as soon as it has answered: what was given out is in the log.
func TestTimestampsOfTheNetwork(t *testing.T) {
	t.Parallel()
	r := newStampRig(t, "")
	r.certify(r.request(), nil)
	r.tsa["listen"] = "127.0.0.1:0"
	given := map[record.Hash]bool{}
	listening := regexp.MustCompile(`time-stamps are served.* address=(127\.0\.0\.1:\d+)`)
	c := newStampClient(t, r.dir)
	for range 3 {
		daemon := r.serve()
		m := listening.FindStringSubmatch(daemon.stderr.String())
		if m == nil {
			t.Fatalf("the daemon does not say where it listens: %s", daemon.stderr)
		}
		c.socket, c.url = "", "http://"+m[1]+"/tsa"
		for range 3 {
			given[c.requireStamp("-sha256 -cert")] = true
		}
		if err := c.ask("-sha256 -cert"); err != nil {
			t.Fatal(err)
		}
		daemon.kill()
		if out, err := c.sh(`openssl ts -reply -in reply.tsr -token_out -out token.der`); err != nil {
			t.Fatal(err, out)
		}
		token, err := os.ReadFile(filepath.Join(c.dir, "token.der"))
		if err != nil {
			t.Fatal(err)
		}
		given[sha256.Sum256(token)] = true
	}
	daemon := r.serve()
	w := browse(t, r.dir)
	recorded := w.tokens(t)
	for h := range given {
		if recorded[h] == nil {
			t.Errorf("the log does not have token %x", h[:])
		}
	}
	if len(given) != 12 || len(recorded) != 12 {
		t.Errorf("%d tokens were given, %d recorded", len(given), len(recorded))
	}
	w.requireVerified(t, r.policy(w))
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// TestWrongAuthority has the daemon refuse certificates that clients would not trust, with one line that says what to do.
func TestWrongAuthority(t *testing.T) {
	t.Parallel()
	r := newStampRig(t, "")
	request := r.request()
	if again := r.request(); !request.PublicKey.(*ecdsa.PublicKey).Equal(again.PublicKey) {
		t.Error("a second request is for another key")
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	usage := asn1.ObjectIdentifier{2, 5, 29, 37}
	for _, row := range []struct {
		name   string
		change func(*x509.Certificate)
		public any
		words  []string
	}{
		{"of another key", nil, stranger.Public(), []string{"tsa.certificate", "another key"}},
		{"usage not critical", func(c *x509.Certificate) {
			for i := range c.ExtraExtensions {
				c.ExtraExtensions[i].Critical = c.ExtraExtensions[i].Critical && !c.ExtraExtensions[i].Id.Equal(usage)
			}
		}, nil, []string{"critical"}},
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil, []string{"have a new one issued"}},
	} {
		bad := *request
		bad.Extensions = append([]pkix.Extension(nil), request.Extensions...)
		if row.public != nil {
			bad.PublicKey = row.public
		}
		r.certify(&bad, row.change)
		r.requireNoStart(row.name, row.words)
	}
	if err := os.Remove(r.path("tsa.pem")); err != nil {
		t.Fatal(err)
	}
	r.requireNoStart("no certificate", []string{"tsa.pem", "correct the path"})
	r.certify(request, nil)
	key := r.tsa["key"]
	r.tsa["key"] = strings.Replace(key.(string), "stamps-tsa", "nothing", 1)
	r.requireNoStart("no key", []string{"tsa.key", "object=nothing"})
	r.tsa["key"] = key

	check := r.bullad("check", "--config", r.configure())
	var text strings.Builder
	for line := range check.lines {
		fmt.Fprintln(&text, line)
	}
	if code := check.exit(); code != 0 || !strings.Contains(text.String(), "ok    tsa: the certificate of CN=Example TSA") {
		t.Errorf("bullad check: exit code %d:\n%s%s", code, text.String(), check.stderr)
	}
}

// TestTimestampsAsDocumented runs the commands of docs/operations.md, from the request for a certificate to the entry of a token.
func TestTimestampsAsDocumented(t *testing.T) {
	t.Parallel()
	r := newStampRig(t, "")
	c := newStampClient(t, r.dir)
	r.tsa["certificate"] = filepath.Join(c.dir, "tsa.pem")
	b, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	place := strings.NewReplacer("/etc/bulla/bullad.toml", r.configure(), "/run/bulla", r.dir)
	run := func(tag string) string {
		t.Helper()
		m := regexp.MustCompile("(?s)\n```sh " + tag + "\n(.*?)```").FindSubmatch(b)
		if m == nil {
			t.Fatalf("docs/operations.md has no %s", tag)
		}
		out, err := c.sh(place.Replace(string(m[1])), "SOFTHSM2_CONF="+r.path("hsm/softhsm2.conf"), "BULLA_SOCKET="+r.path("sign.sock"),
			"PATH="+filepath.Dir(program(t, "bullad"))+":"+filepath.Dir(program(t, "bulla"))+":"+os.Getenv("PATH"))
		if err != nil {
			t.Fatalf("%s: %v\n%s", tag, err, out)
		}
		return out
	}
	if out, err := c.sh(`openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=Example CA" -days 30 -keyout ca.key -out ca.pem`); err != nil {
		t.Fatal(err, out)
	}
	run("tsa-request")
	run("tsa-certificate")
	daemon := r.serve()
	if out := run("tsa-use"); !strings.Contains(out, "Verification: OK") {
		t.Errorf("the client says %s", out)
	}
	out := run("tsa-find")
	lines := strings.Split(strings.TrimSpace(out), "\n") // before the last, openssl speaks of its configuration
	e, err := record.ParseEntry([]byte(lines[len(lines)-1]))
	if err != nil || e.Kind != record.KindToken {
		t.Errorf("the auditor finds %q: %v", out, err)
	}
	if code := daemon.stop(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, daemon.stderr)
	}
}

// requireNoStart checks that the daemon refuses the configuration: exit 64, in one line that has the words.
func (r *stampRig) requireNoStart(name string, words []string) {
	r.t.Helper()
	c := r.bullad("serve", "--config", r.configure())
	code, message := c.exit(), c.stderr.String()
	if code != 64 || strings.Count(message, "\n") != 1 {
		r.t.Errorf("%s: exit code %d, %q", name, code, message)
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			r.t.Errorf("%s: %q is not in the message: %s", name, word, message)
		}
	}
}
