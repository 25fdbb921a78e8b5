package softhsmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Chronyd is a real NTP server and client that never touches the machine's clock: it runs with -x, and without the right to set a clock.
// It is Debian's, unpacked into the user's cache by fetch-chrony.sh and never installed.
type Chronyd struct {
	Dir     string // absolute
	Address string // host:port, where it serves time
	Command string // host:port, where it answers chronyc and monitors

	p *process
}

const (
	chronydStart = 20 * time.Second // for it to answer, on a busy machine
	chronydStop  = 5 * time.Second
)

// findChronyd returns the program that fetch-chrony.sh unpacked.
func findChronyd() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "bulla-test", "chrony", "usr", "sbin", "chronyd")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("chronyd is not there: run make deps: %w", err)
	}
	return path, nil
}

// StartChronyd starts chronyd in dir, which must not exist, on a loopback address of its own. The directives say what time it has and
// where from, in chrony.conf's words: `local stratum 1` serves the machine's time as true; `server 127.1.2.3 port 123 iburst minpoll 0
// maxpoll 0` follows an NTP server. ctx bounds the starting only.
func StartChronyd(ctx context.Context, dir string, directives ...string) (*Chronyd, error) {
	c, err := startChronyd(ctx, dir, directives)
	if err != nil {
		return nil, fmt.Errorf("starting chronyd in %s: %w", dir, err)
	}
	return c, nil
}

func startChronyd(ctx context.Context, dir string, directives []string) (_ *Chronyd, err error) {
	path, err := findChronyd()
	if err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	c := &Chronyd{Dir: dir}
	if n := len(c.socket()); n > maxSocketPath {
		return nil, fmt.Errorf("its socket would have a path of %d bytes, and the system allows %d: use a shorter directory", n, maxSocketPath)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := c.configure(directives); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "-x", "-d", "-U", "-u", me.Username, "-F", "0", "-f", c.config())
	if os.Geteuid() == 0 { // others cannot set the clock anyway
		cmd = exec.Command("setpriv", append([]string{"--bounding-set", "-sys_time", "--inh-caps", "-sys_time", "--pdeathsig", "KILL"}, cmd.Args...)...)
	}
	if c.p, err = start(cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, chronydStart)
	defer cancel()
	return c, c.p.until(ctx, c.ready)
}

func (c *Chronyd) config() string { return filepath.Join(c.Dir, "chrony.conf") }

func (c *Chronyd) socket() string { return filepath.Join(c.Dir, "chronyd.sock") }

func (c *Chronyd) configure(directives []string) error {
	ip := ownAddress()
	ports := make([]int, 2)
	for i := range ports { // chronyd cannot choose one itself
		probe, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip})
		if err != nil {
			return err
		}
		defer probe.Close()
		ports[i] = probe.LocalAddr().(*net.UDPAddr).Port
	}
	c.Address = net.JoinHostPort(ip.String(), fmt.Sprint(ports[0]))
	c.Command = net.JoinHostPort(ip.String(), fmt.Sprint(ports[1]))
	conf := fmt.Sprintf("port %d\nbindaddress %s\nallow 127.0.0.0/8\ncmdport %d\nbindcmdaddress %s\nbindcmdaddress %s\ncmdallow 127.0.0.0/8\npidfile %s\n",
		ports[0], ip, ports[1], ip, c.socket(), filepath.Join(c.Dir, "chronyd.pid"))
	return os.WriteFile(c.config(), []byte(conf+strings.Join(directives, "\n")+"\n"), 0o600)
}

// ready asks for the tracking report (candm.h of chrony 4, protocol version 6): whatever comes back shows that it serves.
func (c *Chronyd) ready() error {
	conn, err := net.Dial("udp", c.Command)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	request := make([]byte, 104)
	request[0], request[1], request[5] = 6, 1, 33
	if _, err := conn.Write(request); err != nil {
		return err
	}
	_, err = conn.Read(request)
	return err
}

// Stop ends chronyd in order.
func (c *Chronyd) Stop() error {
	err := c.p.signal(syscall.SIGTERM)
	if !c.p.ended(chronydStop) {
		err = errors.Join(err, c.p.kill())
	}
	return err
}
