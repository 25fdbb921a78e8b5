package softhsmtest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Behaviour is how an NTP server answers. The zero value is an honest server of stratum 1.
type Behaviour struct {
	Offset   time.Duration // its clock is ahead of the machine's by this much
	DriftPPM float64       // and runs away by this much, from when the server was started

	Stratum   uint8         // 0: 1
	Leap      uint8         // 0 none, 1 insert, 2 delete, 3 not synchronised
	Mode      uint8         // 0: 4, server
	Version   uint8         // 0: as asked
	Kiss      string        // four letters: a kiss of death, and stratum 0
	RootDelay time.Duration // at most 65535 s
	RootDisp  time.Duration // at most 65535 s; 0: 100 us; negative: none
	RefAge    time.Duration // how long ago it says that it was set, beyond a second; may be negative

	DelayIn    time.Duration // before the query reaches it
	DelayOut   time.Duration // before its answer leaves
	Processing time.Duration // claimed between receipt and answer, beyond the truth; may be negative

	Silent     bool // no answer
	BadOrigin  bool // the answer is to another query
	SpoofFirst bool // a forged answer, an hour ahead, comes before the true one
	Backwards  bool // it answered a second before it received
	NoTransmit bool // without the time of the answer
	Half       bool // half an answer

	Key      *NTPKey // answers to queries authenticated by this key are, too; a query with a wrong one gets a crypto-NAK
	WrongMAC bool    // ... by one that does not match
	NAK      bool    // a crypto-NAK, whatever the query
}

// NTP is an NTP server on a loopback address.
type NTP struct {
	Address string // host:port

	conn    *net.UDPConn
	started time.Time
	now     atomic.Pointer[Behaviour]
	queries atomic.Int64
	late    chan struct{} // slots for answers that wait
	closing chan struct{}
	done    sync.WaitGroup
	failed  error // why it stopped serving; valid after done
}

// maxLate bounds the answers that wait; queries beyond them get none.
const maxLate = 256

// ntpServers numbers the servers of this process, so that each has an address of its own: clients refuse two sources with one.
var ntpServers atomic.Uint32

// ownAddress is an address in 127/8 that no other server of this process has, nor, as likely as not, of another.
func ownAddress() net.IP {
	n, pid := ntpServers.Add(1)-1, os.Getpid()
	return net.IPv4(127, byte(16+(pid>>8+int(n/250))&0x7F), byte(pid), byte(1+n%250))
}

// StartNTP starts a server on an address of its own.
func StartNTP(b Behaviour) (*NTP, error) { return listenNTP(&net.UDPAddr{IP: ownAddress()}, b) }

// RestartNTP starts a server where one was that has been closed.
func RestartNTP(address string, b Behaviour) (*NTP, error) {
	a, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, fmt.Errorf("starting an NTP server: %w", err)
	}
	if !a.IP.IsLoopback() {
		return nil, fmt.Errorf("starting an NTP server: %s is not a loopback address", address)
	}
	return listenNTP(a, b)
}

func listenNTP(a *net.UDPAddr, b Behaviour) (*NTP, error) {
	conn, err := net.ListenUDP("udp4", a)
	if err != nil {
		return nil, fmt.Errorf("starting an NTP server: %w", err)
	}
	if err := stampArrivals(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("starting an NTP server: %w", err), conn.Close())
	}
	s := &NTP{Address: conn.LocalAddr().String(), conn: conn, started: time.Now(), late: make(chan struct{}, maxLate), closing: make(chan struct{})}
	s.Set(b)
	s.done.Go(s.serve)
	return s, nil
}

// Set changes how the server answers from now on.
func (s *NTP) Set(b Behaviour) { s.now.Store(&b) }

// Queries is the number of queries received.
func (s *NTP) Queries() int64 { return s.queries.Load() }

// Close stops the server. Answers that wait are not sent.
func (s *NTP) Close() error {
	close(s.closing)
	err := s.conn.Close()
	s.done.Wait()
	return errors.Join(err, s.failed)
}

const (
	ntpHeader  = 48   // bytes, without authentication
	ntpMax     = 1024 // bytes read of a query
	modeClient = 3
	modeServer = 4
)

func (s *NTP) serve() {
	in, oob := make([]byte, ntpMax), make([]byte, 128)
	for {
		n, oobn, _, from, err := s.conn.ReadMsgUDP(in, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.failed = fmt.Errorf("serving NTP: %w", err)
			return
		}
		arrived := arrival(oob[:oobn])
		if n < ntpHeader || in[0]&7 != modeClient { // answering answers would never end
			continue
		}
		s.queries.Add(1)
		b := *s.now.Load()
		q := query{packet: bytes.Clone(in[:n]), arrived: arrived, from: from}
		switch {
		case b.Silent:
		case b.DelayIn <= 0 && b.DelayOut <= 0:
			s.answer(b, q)
		default:
			s.answerLate(b, q)
		}
	}
}

// query is one that arrived.
type query struct {
	packet  []byte
	arrived time.Time
	from    *net.UDPAddr
}

func (s *NTP) answerLate(b Behaviour, q query) {
	select {
	case s.late <- struct{}{}:
	default:
		return
	}
	s.done.Go(func() {
		defer func() { <-s.late }()
		if s.pause(b.DelayIn) {
			q.arrived = q.arrived.Add(b.DelayIn)
			s.answer(b, q)
		}
	})
}

// pause waits, unless the server is closed meanwhile.
func (s *NTP) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-s.closing:
		return false
	}
}

// answer sends what there is to send.
func (s *NTP) answer(b Behaviour, q query) {
	out := b.packet(q, s.started)
	if b.SpoofFirst {
		forged := bytes.Clone(out)
		forged[24] ^= 0x55
		putTime(forged[40:], time.Now().Add(b.Offset+time.Hour))
		s.send(forged, q.from)
	}
	if s.pause(b.DelayOut) {
		s.send(out, q.from)
	}
}

// send may fail only because the client is gone, which is what it asked for, or because the server is being closed.
func (s *NTP) send(b []byte, to *net.UDPAddr) { _, _ = s.conn.WriteToUDP(b, to) }

// packet makes the reply to a query (RFC 5905 section 7.3).
func (b *Behaviour) packet(q query, started time.Time) []byte {
	shift := func(t time.Time) time.Time {
		return t.Add(b.Offset + time.Duration(float64(t.Sub(started))*b.DriftPPM/1e6))
	}
	out := make([]byte, ntpHeader, ntpHeader+maxMAC)
	version := cmp.Or(b.Version, q.packet[0]>>3&7)
	out[0] = b.Leap<<6 | version&7<<3 | cmp.Or(b.Mode, modeServer)&7
	out[1] = cmp.Or(b.Stratum, 1)
	out[2], out[3] = 6, 0xE9 // poll; precision 2^-23 s
	putShort(out[4:], b.RootDelay)
	putShort(out[8:], cmp.Or(b.RootDisp, 100*time.Microsecond))
	copy(out[12:16], "LOCL")
	if b.Kiss != "" {
		out[1] = 0
		copy(out[12:16], b.Kiss)
	}
	received, sent := shift(q.arrived), shift(time.Now()).Add(b.Processing)
	if b.Backwards {
		sent = received.Add(-time.Second)
	}
	putTime(out[16:], received.Add(-b.RefAge-time.Second))
	copy(out[24:32], q.packet[40:48])
	putTime(out[32:], received)
	if !b.NoTransmit {
		putTime(out[40:], sent)
	}
	if b.BadOrigin {
		out[24] ^= 0x55
	}
	out = b.authenticate(out, q.packet)
	if b.Half {
		return out[:ntpHeader/2]
	}
	return out
}

// stampArrivals has the kernel say when each packet arrived, as good servers do.
func stampArrivals(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = raw.Control(func(fd uintptr) { e = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
	return errors.Join(err, e)
}

// arrival is when the kernel says that a packet arrived, or else now.
func arrival(oob []byte) time.Time {
	if msgs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for _, m := range msgs {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}

// putTime writes an NTP timestamp: seconds since 1900 modulo 2^32, and a fraction of 2^-32 s.
func putTime(b []byte, t time.Time) {
	const since1900 = 2208988800
	binary.BigEndian.PutUint32(b, uint32(t.Unix()+since1900))
	binary.BigEndian.PutUint32(b[4:], uint32(uint64(t.Nanosecond())<<32/1e9))
}

// putShort writes the NTP short format, 16 bits of seconds and 16 of fraction, of a time from 0 up.
func putShort(b []byte, d time.Duration) {
	binary.BigEndian.PutUint32(b, uint32(min(max(d.Seconds(), 0)*(1<<16), math.MaxUint32)))
}
