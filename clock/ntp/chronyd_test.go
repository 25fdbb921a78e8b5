//go:build chrony

package ntp

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulla/clock"
)

// Real chronyd servers on loopback addresses: unpacked, never installed, with -x and without CAP_SYS_TIME, so that they cannot touch
// the machine's clock. BULLA_CHRONYD is the path of the binary:
//
//	BULLA_CHRONYD=.../chronyd go test -tags chrony -run Chronyd -v ./clock/ntp

// chronyd starts a server at ip that follows upstream, or claims to be right if that is empty. It returns the addresses to ask for
// time and for tracking.
func chronyd(t *testing.T, ip, upstream string) (address, commands string) {
	t.Helper()
	binary := os.Getenv("BULLA_CHRONYD")
	if binary == "" {
		t.Fatal("BULLA_CHRONYD must name chronyd (Debian: chrony, unpacked)")
	}
	dir, err := os.MkdirTemp("", "chrony")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o750); err != nil {
		t.Fatal(err)
	}
	port, cmdPort := freePort(t, ip), freePort(t, ip)
	follow := "local stratum 1"
	if upstream != "" {
		host, p, err := net.SplitHostPort(upstream)
		if err != nil {
			t.Fatal(err)
		}
		follow = fmt.Sprintf("server %s port %s iburst minpoll 0 maxpoll 0", host, p)
	}
	conf := fmt.Sprintf("port %s\nbindaddress %s\n%s\nallow 127.0.0.0/8\ncmdport %s\nbindcmdaddress %s\nbindcmdaddress %s/chronyd.sock\npidfile %s/chronyd.pid\n",
		port, ip, follow, cmdPort, ip, run, run)
	file := filepath.Join(dir, "chronyd.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time", binary, "-x", "-d", "-U", "-u", "root", "-F", "0", "-f", file)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait() // chronyd ends with 0 or by the signal
		if t.Failed() {
			t.Logf("%s: %s", ip, out.String())
		}
	})
	return net.JoinHostPort(ip, port), net.JoinHostPort(ip, cmdPort)
}

func freePort(t *testing.T, ip string) string {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, port, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Three honest servers and one that follows a liar, by 250 ms: it is named, the kernel's and its own claims do not matter, and the
// bound holds the truth throughout.
func TestChronyd(t *testing.T) {
	const lie = 250 * time.Millisecond
	liar := newResponder(t, behaviour{offset: lie})
	var sources []Source
	for i := range 3 {
		address, _ := chronyd(t, fmt.Sprintf("127.0.77.%d", i+1), "")
		sources = append(sources, Source{Name: fmt.Sprintf("honest%d", i+1), Address: address})
	}
	address, commands := chronyd(t, "127.0.77.4", liar.address())
	sources = append(sources, Source{Name: "misled", Address: address})

	b := newLogbook()
	m := runMonitor(t, Config{Sources: sources, Policy: testPolicy(), Record: b.record, Chronyd: commands})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	stamps := 0
	wg.Go(func() { // the system's clock is the truth here
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if s := m.Now(); s.HasEstimate {
				if stamps++; s.Offset > s.Bound || -s.Offset > s.Bound {
					t.Errorf("truth outside: %+v", s)
				}
			}
		}
	})
	r := b.until(t, "round that names the misled server", func(e clock.Evidence) bool {
		return goodRound(e) && e.Round.Samples[3].Verdict == clock.Falseticker
	}).Round
	off := r.Reading.Raw + r.Samples[3].Theta - r.Reading.Real
	if off < int64(lie)*9/10 || off > int64(lie)*11/10 {
		t.Errorf("the misled server is %d ns off", off)
	}
	b.until(t, "alarm about chronyd", func(e clock.Evidence) bool {
		return goodRound(e) && slices.Contains(e.Round.Alarms, clock.AlarmChronyd) && e.Round.Chronyd.Correction > int64(lie)*9/10
	})
	close(stop)
	wg.Wait()
	b.checked(t)
	t.Logf("misled by %v, found %v off; bound %v; %d stamps hold the truth", lie, time.Duration(off), time.Duration(r.Mapping.Bound), stamps)
}
