// Package ntp measures UTC: it asks NTP servers (RFC 5905), reads the clocks of this machine, and runs the discipline of package
// clock over both. What it publishes is evidence first: an estimate stamps entries only after the round that it rests on is durable.
//
//	ntp.go      what is configured
//	monitor.go  the main loop: disturbances, time passing, rounds; record, then publish
//	watch.go    steps, suspends and pauses, from readings of the clocks once a second
//	sources.go  bursts, back-off, name resolution
//	query.go    one query, with every trap of it closed
//	machine.go  this machine's clocks
//	chronyd.go  what a local chronyd claims
//	status.go   for people and metrics
package ntp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/beevik/ntp"

	"bulla/clock"
)

// Config is what a Monitor measures with.
type Config struct {
	Sources []Source     // at least Policy.MinSources, of distinct operators: no more than Policy.F of them may ever lie together
	Policy  clock.Policy // what governs measurement

	// Record makes evidence durable, in every log of the daemon, and returns when it is. If it fails, the evidence has no effect,
	// or (a disturbance) is recorded again later. It is never called twice at a time.
	Record func(ctx context.Context, e clock.Evidence) error

	Resume  clock.Resume // where the logs left off
	Chronyd string       // UDP address of a local chronyd's command port, usually 127.0.0.1:323; empty: none is asked
}

// Source is one NTP server.
type Source struct {
	Name    string // as it appears in the log; empty: the address
	Address string // host or host:port
	Key     *Key   // authenticates its answers; nil: they are not authenticated
}

// Key is a symmetric key that a source and this machine share.
type Key struct {
	id        uint32
	algorithm string
	secret    string // hexadecimal
}

// algorithms are those that are still fit for use (RFC 8573). MD5 and SHA-1 are not.
var algorithms = map[string]struct {
	auth     ntp.AuthType
	min, max int // bytes
	name     string
}{
	"AES128": {ntp.AuthAES128, 16, 16, "aes-128-cmac"},
	"AES256": {ntp.AuthAES256, 32, 32, "aes-256-cmac"},
	"SHA256": {ntp.AuthSHA256, 16, 32, "sha-256"},
	"SHA512": {ntp.AuthSHA512, 16, 32, "sha-512"},
}

// ParseKey reads a key as chrony's and ntpd's key files have it: "ID TYPE HEX", TYPE being AES128, AES256, SHA256 or SHA512. The
// error never contains the key.
func ParseKey(line string) (*Key, error) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return nil, errors.New("an NTP key is one line, ID TYPE HEX, as in: 7 AES128 00112233445566778899aabbccddeeff")
	}
	id, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil || id == 0 {
		return nil, errors.New("an NTP key's ID is a number from 1 to 4294967295")
	}
	a, ok := algorithms[f[1]]
	if !ok {
		return nil, errors.New("an NTP key's type is AES128, AES256, SHA256 or SHA512 (MD5 and SHA1 are broken; have the server's operator issue another)")
	}
	secret, err := hex.DecodeString(strings.TrimPrefix(f[2], "HEX:"))
	if err != nil {
		return nil, errors.New("an NTP key is written in hexadecimal digits")
	}
	if len(secret) < a.min || len(secret) > a.max {
		return nil, fmt.Errorf("an NTP key of type %s has %d to %d bytes, this one has %d", f[1], a.min, a.max, len(secret))
	}
	return &Key{uint32(id), f[1], hex.EncodeToString(secret)}, nil
}

// String names the key without revealing it.
func (k *Key) String() string { return fmt.Sprintf("%s key %d", k.algorithm, k.id) }

// GoString names the key without revealing it.
func (k *Key) GoString() string { return k.String() }

// LogValue names the key without revealing it.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// options is how beevik/ntp wants it.
func (k *Key) options() ntp.AuthOptions {
	if k == nil {
		return ntp.AuthOptions{}
	}
	return ntp.AuthOptions{Type: algorithms[k.algorithm].auth, KeyID: k.id, Key: "HEX:" + k.secret}
}

// name is how evidence names the key's algorithm.
func (k *Key) name() string {
	if k == nil {
		return ""
	}
	return algorithms[k.algorithm].name
}

// check completes the sources and refuses what cannot work.
func (c *Config) check() ([]Source, error) {
	if err := c.Policy.Validate(); err != nil {
		return nil, fmt.Errorf("clock policy: %w", err)
	}
	if c.Record == nil {
		return nil, errors.New("nothing to record evidence in")
	}
	if n := len(c.Sources); n < c.Policy.MinSources || n > clock.MaxSources {
		return nil, fmt.Errorf("clock.source: %d sources are configured, the policy demands %d to %d of distinct operators", n, c.Policy.MinSources, clock.MaxSources)
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	sources := make([]Source, len(c.Sources))
	for i, s := range c.Sources {
		address, err := withPort(s.Address)
		if err != nil {
			return nil, fmt.Errorf("clock.source[%d].address: %q: %w", i, s.Address, err)
		}
		if s.Name == "" {
			s.Name = s.Address
		}
		if s.Address = address; addresses[address] || names[s.Name] {
			return nil, fmt.Errorf("clock.source[%d]: %s (%s) is configured twice; a source counts once", i, s.Name, address)
		}
		if len(s.Name) > clock.MaxText {
			return nil, fmt.Errorf("clock.source[%d].name: longer than %d bytes", i, clock.MaxText)
		}
		names[s.Name], addresses[address] = true, true
		sources[i] = s
	}
	return sources, unmixed(sources)
}

// smearers are operators, by the end of their servers' names, that spread a leap second over a day: half a second away from UTC in
// the middle of it, without saying so.
var smearers = []string{"google.com", "time.aws.com", "amazon.pool.ntp.org", "169.254.169.123", "facebook.com"}

// unmixed refuses sources that would disagree about a leap second, as far as they are known.
func unmixed(sources []Source) error {
	smears := map[bool]string{}
	for _, s := range sources {
		host, _, err := net.SplitHostPort(s.Address)
		if err != nil {
			return fmt.Errorf("clock.source: %w", err)
		}
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		smears[slices.ContainsFunc(smearers, func(o string) bool { return host == o || strings.HasSuffix(host, "."+o) })] = s.Address
	}
	if len(smears) > 1 {
		return fmt.Errorf("clock.source: %s smears leap seconds and %s does not: they will disagree by half a second; use one kind", smears[true], smears[false])
	}
	return nil
}

// withPort adds NTP's port to an address that has none.
func withPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil { // no port, or an IPv6 address as it is
		host, port = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"), "123"
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", errors.New("not HOST, HOST:PORT, IP or [IPv6]:PORT")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("the port is a number from 1 to 65535")
	}
	if host == "" || len(host) > 253 {
		return "", errors.New("the host is missing or too long")
	}
	return net.JoinHostPort(host, port), nil
}
