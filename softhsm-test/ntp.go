package softhsmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Behaviour is how an NTP server answers. The zero value is an honest server of stratum 1.
type Behaviour struct {
	Offset      time.Duration // its clock is ahead of the machine's by this much
	DriftPPM    float64       // and runs away by this much, from when it was started
	Stratum     uint8         // 0: 1
	Kiss        string        // four letters: a kiss of death
	Leap        uint8         // 0 none, 1 insert, 2 delete, 3 not synchronised
	Version     uint8         // 0: as asked
	RootDelay   time.Duration
	RootDisp    time.Duration // 0: 100 us
	RefAge      time.Duration // how long ago it says it was set; may be negative
	DelayIn     time.Duration // before it reads the query
	DelayOut    time.Duration // before its answer leaves
	Processing  time.Duration // claimed between receipt and answer, beyond the truth
	BadOrigin   bool          // the answer is to another query
	SpoofFirst  bool          // a forged answer comes before the true one
	Backwards   bool          // it answered before it received
	ZeroXmit    bool
	Silent      bool
	HalfAPacket bool
}

// NTP is an NTP server on a loopback address of its own.
type NTP struct {
	Address string // host:port
	conn    *net.UDPConn
	started time.Time
	now     atomic.Pointer[Behaviour]
	queries atomic.Int64
	done    sync.WaitGroup
}

// ntpServers numbers the servers of this process, so that each has an address of its own: clients refuse two sources with one.
var ntpServers atomic.Uint32

// StartNTP starts a server.
func StartNTP(b Behaviour) (*NTP, error) {
	n := ntpServers.Add(1)
	pid := os.Getpid()
	ip := net.IPv4(127, byte(16+pid>>8&0x7F), byte(pid), byte(1+n%250))
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip})
	if err != nil {
		return nil, fmt.Errorf("starting an NTP server: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = errors.Join(err, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		}))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting an NTP server: %w", err), conn.Close())
	}
	s := &NTP{Address: conn.LocalAddr().String(), conn: conn, started: time.Now()}
	s.Set(b)
	s.done.Go(s.serve)
	return s, nil
}

// Set changes how the server answers from now on.
func (s *NTP) Set(b Behaviour) { s.now.Store(&b) }

// Queries is the number of queries received.
func (s *NTP) Queries() int64 { return s.queries.Load() }

// Close stops the server.
func (s *NTP) Close() error {
	err := s.conn.Close()
	s.done.Wait()
	return err
}

func (s *NTP) serve() {
	in, oob := make([]byte, 1024), make([]byte, 128)
	for {
		n, oobn, _, from, err := s.conn.ReadMsgUDP(in, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 48 {
			continue
		}
		s.queries.Add(1)
		b := *s.now.Load()
		if b.Silent {
			continue
		}
		arrived := kernelTime(oob[:oobn])
		query := [48]byte(in[:48])
		if b.DelayIn == 0 && b.DelayOut == 0 {
			s.answer(b, query, arrived, from)
			continue
		}
		s.done.Go(func() {
			time.Sleep(b.DelayIn)
			s.answer(b, query, arrived.Add(b.DelayIn), from)
		})
	}
}

// answer makes the reply to a query (RFC 5905 section 7.3) and sends it.
func (s *NTP) answer(b Behaviour, query [48]byte, arrived time.Time, from *net.UDPAddr) {
	shift := func(t time.Time) time.Time {
		drift := time.Duration(float64(t.Sub(s.started)) * b.DriftPPM / 1e6)
		return t.Add(b.Offset + drift)
	}
	var out [48]byte
	version := query[0] >> 3 & 7
	if b.Version != 0 {
		version = b.Version
	}
	out[0] = b.Leap<<6 | version<<3 | 4
	out[1] = max(b.Stratum, 1)
	out[2], out[3] = 6, 0xE9 // poll; precision 2^-23 s
	copy(out[12:16], "LOCL")
	if b.Kiss != "" {
		out[1] = 0
		copy(out[12:16], b.Kiss)
	}
	disp := b.RootDisp
	if disp == 0 {
		disp = 100 * time.Microsecond
	}
	binary.BigEndian.PutUint32(out[4:], short(b.RootDelay))
	binary.BigEndian.PutUint32(out[8:], short(disp))
	putTime(out[16:], shift(arrived.Add(-b.RefAge-time.Second)))
	copy(out[24:32], query[40:48])
	received := shift(arrived)
	putTime(out[32:], received)
	sent := shift(time.Now()).Add(b.Processing)
	if b.Backwards {
		sent = received.Add(-time.Second)
	}
	if !b.ZeroXmit {
		putTime(out[40:], sent)
	}
	if b.BadOrigin {
		out[24] ^= 0x55
	}
	if b.SpoofFirst {
		forged := out
		forged[24] ^= 0x55
		putTime(forged[40:], sent.Add(time.Hour))
		s.send(forged[:], from)
	}
	if b.DelayOut > 0 {
		time.Sleep(b.DelayOut)
	}
	n := len(out)
	if b.HalfAPacket {
		n /= 2
	}
	s.send(out[:n], from)
}

// send may fail only because the client is gone, which is what it asked for.
func (s *NTP) send(b []byte, to *net.UDPAddr) { _, _ = s.conn.WriteToUDP(b, to) }

func kernelTime(oob []byte) time.Time {
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

// short is the NTP short format: 16 bits of seconds and 16 of fraction.
func short(d time.Duration) uint32 { return uint32(uint64(d) << 16 / 1e9) }
