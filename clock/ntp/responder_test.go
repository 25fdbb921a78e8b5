package ntp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// behaviour is how a responder answers.
type behaviour struct {
	offset     time.Duration // of its clock to this machine's
	before     time.Duration // delays the query
	after      time.Duration // delays the answer
	claim      time.Duration // claims to have worked this much longer
	reference  time.Duration // how long ago it was set; 0: a second
	rootDelay  uint32        // 2^-16 s
	rootDisp   uint32        // 2^-16 s; 0: 0.5 ms
	stratum    uint8         // 0: 1, unless kiss is set
	kiss       string
	leap       uint8
	version    uint8 // 0: 4
	mode       uint8 // 0: 4, server
	wrong      bool  // another query's origin
	spoof      bool  // a forged packet first
	rollback   bool  // sent before received
	noTransmit bool
	silent     bool
	short      bool
	key        []byte // SHA-256 key 7
	wrongMAC   bool
	nak        bool
	badRef     bool // set in the future
}

// responder is an NTP server on a loopback port whose every field a test decides.
type responder struct {
	conn    *net.UDPConn
	now     func() time.Time
	is      atomic.Pointer[behaviour]
	queries atomic.Int64
}

func newResponder(t *testing.T, b behaviour) *responder {
	t.Helper()
	r, err := listen(b, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.serve()
	}()
	t.Cleanup(func() {
		r.conn.Close()
		<-done
	})
	return r
}

// listen makes a responder that keeps the time of now.
func listen(b behaviour, now func() time.Time) (*responder, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	r := &responder{conn: conn, now: now}
	r.is.Store(&b)
	return r, nil
}

func (r *responder) address() string { return r.conn.LocalAddr().String() }

func (r *responder) becomes(b behaviour) { r.is.Store(&b) }

func (r *responder) serve() {
	for {
		q := make([]byte, 1024)
		n, from, err := r.conn.ReadFromUDP(q)
		if err != nil {
			return
		}
		received := r.now()
		r.queries.Add(1)
		b := *r.is.Load()
		if b.silent || n < 48 {
			continue
		}
		time.Sleep(b.before)
		if b.before > 0 {
			received = r.now()
		}
		if b.spoof {
			forged := b.answer(q[:n], received, r.now())
			forged[24] ^= 1
			r.conn.WriteToUDP(forged, from)
		}
		a := b.answer(q[:n], received, r.now())
		if b.after > 0 {
			go func() {
				time.Sleep(b.after)
				r.conn.WriteToUDP(a, from)
			}()
			continue
		}
		r.conn.WriteToUDP(a, from)
	}
}

func (b behaviour) answer(q []byte, received, now time.Time) []byte {
	a := make([]byte, 48)
	version, mode, stratum, disp, ref := b.version, b.mode, b.stratum, b.rootDisp, b.reference
	if version == 0 {
		version = 4
	}
	if mode == 0 {
		mode = 4
	}
	if stratum == 0 && b.kiss == "" {
		stratum = 1
	}
	if disp == 0 {
		disp = 33
	}
	if ref == 0 {
		ref = time.Second
	}
	if b.badRef {
		ref = -time.Hour
	}
	a[0] = b.leap<<6 | version<<3 | mode
	a[1], a[2], a[3] = stratum, 6, 0xe8 // 2^-24 s
	binary.BigEndian.PutUint32(a[4:], b.rootDelay)
	binary.BigEndian.PutUint32(a[8:], disp)
	copy(a[12:16], "TEST")
	if b.kiss != "" {
		copy(a[12:16], b.kiss)
	}
	putTime(a[16:], received.Add(b.offset-ref))
	copy(a[24:32], q[40:48])
	if b.wrong {
		a[24] ^= 1
	}
	putTime(a[32:], received.Add(b.offset))
	sent := now.Add(b.offset + b.claim)
	if b.rollback {
		sent = received.Add(b.offset - time.Second)
	}
	putTime(a[40:], sent)
	if b.noTransmit {
		clear(a[40:48])
	}
	switch {
	case b.short:
		return a[:47]
	case b.nak:
		return append(a, 0, 0, 0, 0)
	case b.key != nil:
		mac := sha256.Sum256(append(bytes.Clone(b.key), a...))
		if b.wrongMAC {
			mac[0] ^= 1
		}
		a = append(binary.BigEndian.AppendUint32(a, 7), mac[:20]...)
	}
	return a
}

func putTime(b []byte, t time.Time) {
	const era = 2208988800 // 1900 to 1970
	binary.BigEndian.PutUint32(b, uint32(t.Unix()+era))
	binary.BigEndian.PutUint32(b[4:], uint32(uint64(t.Nanosecond())<<32/1e9))
}
