package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/term"

	"bulla/ceremony"
)

// sign has the key of whoever signs sign a document. appointed is who that is in the log; nil where no log was asked.
func (o *officer) sign(ctx context.Context, document []byte, d ceremony.Decision, appointed *ceremony.Officer) (string, error) {
	var known ssh.PublicKey
	if appointed != nil {
		var err error
		if known, err = appointed.PublicKey(); err != nil {
			return "", coded(exitTampered, fmt.Errorf("the key of %s in the log: %w", appointed.Name, err))
		}
	} else if o.key == "" {
		return "", usagef("--key: name the file of your SSH key, private, or public where ssh-agent holds it")
	}
	signer, done, err := o.signer(ctx, known)
	if err != nil {
		return "", err
	}
	defer done()
	pub := signer.PublicKey()
	switch {
	case appointed == nil:
		appointed = &ceremony.Officer{Name: o.as, Key: keyText(pub)}
	case !bytes.Equal(pub.Marshal(), known.Marshal()):
		return "", usagef("the key %s is not the one that the log knows %s by (%s)", ssh.FingerprintSHA256(pub), o.as, ssh.FingerprintSHA256(known))
	}
	if isFIDO(pub.Type()) {
		fmt.Fprintln(o.err, "bulla: touch the key", ssh.FingerprintSHA256(pub))
	}
	armored, err := ceremony.Sign(rand.Reader, document, d, signer)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		_, err = appointed.Check(document, d, armored) // an agent is another program, and a FIDO2 key may not have asked for its PIN
	}
	if err != nil {
		return "", coded(exitUnavailable, fmt.Errorf("signing as %s: %w", o.as, err))
	}
	return armored, nil
}

// signer finds the key to sign with; done lets go of it. known is the one that the log knows, nil where no log was asked.
func (o *officer) signer(ctx context.Context, known ssh.PublicKey) (s ssh.Signer, done func(), err error) {
	if o.key == "" {
		return agentSigner(ctx, o.agent, known)
	}
	b, err := readFile(o.key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(b)
	if pub, err := publicKey(b); err == nil {
		return agentSigner(ctx, o.agent, pub)
	}
	s, err = o.privateKey(ctx, b)
	return s, func() {}, err
}

// publicKey reads a file as ssh-keygen writes it beside a private key.
func publicKey(b []byte) (ssh.PublicKey, error) {
	pub, _, options, rest, err := ssh.ParseAuthorizedKey(b)
	switch {
	case err != nil:
		return nil, errors.New("not an SSH public key")
	case len(options) > 0:
		return nil, errors.New("a public key without options is needed")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("more than one line")
	}
	return pub, nil
}

func keyText(pub ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(pub)), "\n")
}

func isFIDO(kind string) bool { return strings.HasPrefix(kind, "sk-") }

// privateKey reads the file of a private key, and asks for its passphrase where it has one.
func (o *officer) privateKey(ctx context.Context, b []byte) (ssh.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, usagef("%s: neither a private nor a public SSH key", o.key)
	}
	defer clear(block.Bytes)
	if isFIDO(kindOf(block.Bytes)) {
		return nil, usagef("%s is of a FIDO2 key: `ssh-add` it and give the file of its public key, or sign with `ssh-keygen -Y sign -n %s -f %[1]s DOCUMENT` and give --signature DOCUMENT.sig", o.key, ceremony.Namespace)
	}
	s, err := ssh.ParsePrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		var phrase []byte
		if phrase, err = o.passphrase(ctx); err != nil {
			return nil, err
		}
		defer clear(phrase)
		if s, err = ssh.ParsePrivateKeyWithPassphrase(b, phrase); errors.Is(err, x509.IncorrectPasswordError) {
			return nil, usagef("%s: that is not its passphrase", o.key)
		}
	}
	if err != nil {
		return nil, usagef("%s: not a private key that can be used here: %w", o.key, err)
	}
	return s, nil
}

// kindOf is the type of the public key that a file of OpenSSH's own format (openssh PROTOCOL.key) begins with; "" of any other.
func kindOf(b []byte) string {
	var head struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public               []byte
		Rest                 []byte `ssh:"rest"`
	}
	rest, ok := bytes.CutPrefix(b, []byte("openssh-key-v1\x00"))
	if !ok || ssh.Unmarshal(rest, &head) != nil {
		return ""
	}
	var key struct {
		Type string
		Rest []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(head.Public, &key) != nil {
		return ""
	}
	return key.Type
}

// passphrase asks on the terminal, and nowhere else.
func (o *officer) passphrase(ctx context.Context) ([]byte, error) {
	in, ok := o.in.(*os.File)
	if !ok || !terminal(in) {
		return nil, usagef("%s has a passphrase, and there is no terminal to ask for it: `ssh-add` it and give the file of its public key", o.key)
	}
	before, err := term.GetState(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("asking for a passphrase: %w", err)
	}
	fmt.Fprintf(o.err, "passphrase of %s: ", o.key)
	type answer struct {
		phrase []byte
		err    error
	}
	got := make(chan answer, 1)
	go func() {
		phrase, err := term.ReadPassword(int(in.Fd()))
		got <- answer{phrase, err}
	}()
	select {
	case a := <-got:
		fmt.Fprintln(o.err)
		if a.err != nil {
			return nil, fmt.Errorf("asking for a passphrase: %w", a.err)
		}
		return a.phrase, nil
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), term.Restore(int(in.Fd()), before))
	}
}

// agentSigner finds a key in the ssh-agent behind a socket.
func agentSigner(ctx context.Context, socket string, want ssh.PublicKey) (s ssh.Signer, done func(), err error) {
	const instead = "give the file of a private key, or sign with ssh-keygen and give --signature"
	if runtime.GOOS == "windows" {
		return nil, nil, usagef("ssh-agent is not supported on Windows: %s", instead)
	}
	if socket == "" {
		return nil, nil, usagef("SSH_AUTH_SOCK names no ssh-agent that could hold the key %s: start one, %s", ssh.FingerprintSHA256(want), instead)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil, coded(exitUnavailable, fmt.Errorf("reaching ssh-agent: %w", err))
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // an agent may wait for a touch
	done = func() {
		if stop() {
			_ = conn.Close() // nothing is lost: all answers are there
		}
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		done()
		return nil, nil, coded(exitUnavailable, fmt.Errorf("asking ssh-agent for its keys: %w", err))
	}
	for _, s := range signers {
		if bytes.Equal(s.PublicKey().Marshal(), want.Marshal()) {
			return s, done, nil
		}
	}
	done()
	return nil, nil, usagef("ssh-agent does not hold the key %s: `ssh-add` its file, %s", ssh.FingerprintSHA256(want), instead)
}
