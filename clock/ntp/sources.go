package ntp

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"bulla/clock"
)

const (
	burst        = 4                      // queries a source and round; the one with the shortest round trip counts
	burstGap     = 200 * time.Millisecond // between them
	queryTimeout = time.Second
	maxHold      = 36 * time.Hour // RFC 5905's greatest poll interval
	resolveEvery = time.Hour
	resolveAgain = time.Minute // after a source that does not answer, which may have moved
)

// network asks the sources.
type network struct {
	machine machine
	policy  func() clock.Policy
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	gap     time.Duration
	timeout time.Duration
	sources []*source
}

// source is what is known of a source between rounds.
type source struct {
	Source
	address  string    // IP:port that is asked; empty until the name has resolved once
	resolved time.Time // when that was last tried
	silent   bool      // no answer in the last burst
	held     time.Time // not to be asked before
	hold     time.Duration
	denied   bool
}

func newNetwork(m machine, sources []Source, policy func() clock.Policy) *network {
	n := &network{machine: m, policy: policy, gap: burstGap, timeout: queryTimeout, lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}}
	for _, s := range sources {
		n.sources = append(n.sources, &source{Source: s})
	}
	return n
}

// ask asks every source at once and returns one sample of each, in their order.
func (n *network) ask(ctx context.Context) []clock.Sample {
	out := make([]clock.Sample, len(n.sources))
	var wg sync.WaitGroup
	for _, s := range n.sources {
		wg.Go(func() { n.resolve(ctx, s) })
	}
	wg.Wait()
	for i, s := range n.sources {
		if fail := n.refrain(i); fail != "" {
			out[i] = clock.Sample{Name: s.Name, Address: s.address, Failure: fail}
			continue
		}
		wg.Go(func() { out[i] = n.burst(ctx, s) })
	}
	wg.Wait()
	return out
}

// refrain is why a source must not be asked, or empty.
func (n *network) refrain(i int) string {
	s := n.sources[i]
	switch {
	case s.address == "":
		return failDNS
	case s.denied:
		return failDenied
	case time.Now().Before(s.held):
		return failHeld
	case slices.ContainsFunc(n.sources[:i], func(o *source) bool { return o.address == s.address }):
		return failTwin // one server must not count twice
	}
	return ""
}

// burst asks one source a few times and returns its best answer.
func (n *network) burst(ctx context.Context, s *source) (best clock.Sample) {
	var bestRTT int64
	sent, good, failed := 0, 0, 0
	for sent < burst && failed < 2 && ctx.Err() == nil { // two failures in a row: it will not get better
		if sent > 0 && !sleep(ctx, n.gap) {
			break
		}
		sent++
		a := n.query(ctx, s.Source, s.address)
		j := a.Judge(n.policy())
		if j.Verdict != clock.OK {
			if failed++; good == 0 {
				best = a
			}
			if n.kissed(s, a.Kiss) {
				break
			}
			continue
		}
		failed, s.hold = 0, 0
		if good++; good == 1 || j.RTT < bestRTT {
			best, bestRTT = a, j.RTT
		}
	}
	best.Name, best.Address = s.Name, s.address
	best.Sent, best.Good = sent, good
	s.silent = good == 0
	return best
}

// kissed obeys a kiss code (RFC 5905 section 7.4): RATE holds the source, twice as long each time; DENY and RSTR drop it until the
// next start. Other codes say nothing about asking again.
func (n *network) kissed(s *source, code string) bool {
	switch code {
	case "":
		return false
	case "RATE":
		s.hold = min(max(2*s.hold, 2*time.Duration(n.policy().Poll)), maxHold)
		s.held = time.Now().Add(s.hold)
	case "DENY", "RSTR":
		s.denied = true
	}
	return true
}

// resolve finds a source's address, now and then anew. An address that was found is kept while the name does not resolve, or
// still resolves to it.
func (n *network) resolve(ctx context.Context, s *source) {
	since := time.Since(s.resolved)
	if s.address != "" && since < resolveEvery && !(s.silent && since >= resolveAgain) {
		return
	}
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		return // cannot be: the configuration was checked
	}
	if _, err := netip.ParseAddr(host); err == nil {
		s.address, s.resolved = s.Address, time.Now()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.timeout)
	defer cancel()
	found, err := n.lookup(ctx, host)
	s.resolved = time.Now()
	if err != nil || len(found) == 0 {
		return
	}
	var all []string
	for _, ip := range found {
		all = append(all, net.JoinHostPort(ip.Unmap().String(), port))
	}
	if !slices.Contains(all, s.address) || s.silent {
		s.address = all[(slices.Index(all, s.address)+1)%len(all)]
	}
}

// sleep waits for d and reports whether it did.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
