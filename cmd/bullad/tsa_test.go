package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const withTSA = `state = "/s"
[sockets]
directory = "/r"
[tsa]
key = "pkcs11:token=t;object=tsa"
certificate = "/tsa.pem"
policy = "1.3.6.1.4.1.32473.1"
log = "a"
listen = "127.0.0.1:3161"
[[log]]
name = "a"
origin = "o.example/a"
file = "/a.db"
key = "pkcs11:token=t;object=log"
`

func TestTSAConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"good", "", "", ""},
		{"no listener", `listen = "127.0.0.1:3161"`, "", ""},
		{"any address", `listen = "127.0.0.1:3161"`, `listen = ":3161"`, ""},
		{"no key", `key = "pkcs11:token=t;object=tsa"`, "", "tsa.key: is missing"},
		{"the log's key", "object=tsa", "object=log", "one of their own"},
		{"relative certificate", `"/tsa.pem"`, `"tsa.pem"`, "tsa.certificate:"},
		{"no certificate", `certificate = "/tsa.pem"`, "", "tsa.certificate:"},
		{"no policy", `policy = "1.3.6.1.4.1.32473.1"`, "", "tsa.policy:"},
		{"a policy in words", "1.3.6.1.4.1.32473.1", "best effort", "tsa.policy:"},
		{"a policy with a leading zero", "1.3.6.1.4.1.32473.1", "1.03", "tsa.policy:"},
		{"a policy with a sign", "1.3.6.1.4.1.32473.1", "1.+3", "tsa.policy:"},
		{"a policy of one arc", "1.3.6.1.4.1.32473.1", "1", "tsa.policy:"},
		{"a policy under no root", "1.3.6.1.4.1.32473.1", "3.1", "tsa.policy:"},
		{"a long policy", "1.3.6.1.4.1.32473.1", "1.3" + strings.Repeat(".1", 64), "tsa.policy:"},
		{"another log", `log = "a"`, `log = "b"`, "tsa.log:"},
		{"no port", "127.0.0.1:3161", "127.0.0.1", "tsa.listen:"},
		{"an unknown key", `listen =`, `port =`, `unknown key "tsa.port"`},
	} {
		path := t.TempDir() + "/bullad.toml"
		if err := os.WriteFile(path, []byte(strings.Replace(withTSA, c.old, c.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadConfig(path)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestReadChain(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	one := string(encodeChain(der))
	for _, c := range []struct {
		name, text string
		n          int // certificates; 0: refused
		want       string
	}{
		{"one", one, 1, ""},
		{"three, with words between", one + "the issuer:\n" + one + one, 3, ""},
		{"none", "", 0, "no certificate"},
		{"DER", string(der), 0, "no certificate"},
		{"a private key", one + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), 0, "certificates only"},
		{"damaged", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der[:40]})), 0, "certificate 1"},
		{"too large", strings.Repeat("x", maxChain+1), 0, "larger than"},
	} {
		path := filepath.Join(t.TempDir(), "tsa.pem")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		chain, err := readChain(path)
		if len(chain) != c.n || (err == nil) != (c.n > 0) || err != nil && (!strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage) {
			t.Errorf("%s: %d certificates, %v", c.name, len(chain), err)
		}
	}
	if _, err := readChain("/nowhere/tsa.pem"); exitCode(err) != exitUsage {
		t.Errorf("a missing file: %v", err)
	}
}
