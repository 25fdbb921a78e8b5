package ntp

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/beevik/ntp"

	"bulla/clock"
)

// Failures of a query, as they are recorded. An answer that arrived whole is judged by package clock instead.
const (
	failTimeout     = "timeout"     // no answer
	failRefused     = "refused"     // the host says that nobody listens
	failUnreachable = "unreachable" // the network says so
	failMismatch    = "mismatch"    // not the answer to this query: forged, or late
	failAuth        = "auth"        // not authenticated by the source's key
	failNak         = "nak"         // the server does not know the key
	failMode        = "mode"        // not a server's answer
	failTransmit    = "transmit"    // without the time that it was sent at
	failBackwards   = "backwards"   // sent before the query was received
	failShort       = "short"       // less than a packet
	failInvalid     = "invalid"     // refused by beevik/ntp, for a reason that package clock does not know
	failSystem      = "system"      // this machine could not ask
	failDNS         = "dns"         // the name has no address, and never had
	failHeld        = "held"        // not asked: the server wants to be asked less often
	failDenied      = "denied"      // not asked: the server refuses to serve this machine
	failTwin        = "twin"        // not asked: its name leads to the same address as another source's
)

// query asks address once. The answer is not judged yet.
func (n *network) query(ctx context.Context, s Source, address string) clock.Sample {
	out := clock.Sample{Name: s.Name, Address: address, Auth: s.Key.name()}
	t := &tap{}
	var stop func() bool
	opt := ntp.QueryOptions{Timeout: n.timeout, Auth: s.Key.options(), Extensions: []ntp.Extension{t}, Dialer: func(_, remote string) (c net.Conn, err error) {
		c, stop, err = dial(ctx, remote)
		return c, err
	}}
	out.Before = n.machine.Stamp()
	r, err := ntp.QueryWithOptions(address, opt)
	out.After = n.machine.Stamp()
	if stop != nil {
		stop()
	}
	if err != nil {
		out.Failure = failure(err)
		if code, ok := t.kiss(); ok && errors.Is(err, ntp.ErrInvalidTransmitTime) && s.Key == nil {
			out.Failure, out.Kiss, out.Version = "", code, 4 // a kiss without times: stratum 0 says it all
		}
		return out
	}
	out.T1, out.T2 = r.Timestamps.ClientXmit.UnixNano(), r.Timestamps.ServerRecv.UnixNano()
	out.T3, out.T4 = r.Timestamps.ServerXmit.UnixNano(), r.Timestamps.ClientRecv.UnixNano()
	out.RefTime, out.Delay, out.Disp, out.Prec = r.ReferenceTime.UnixNano(), int64(r.RootDelay), int64(r.RootDispersion), int64(r.Precision)
	out.Stratum, out.Leap, out.Version, out.Kiss = int(r.Stratum), int(r.Leap), r.Version, r.KissCode
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], r.ReferenceID)
	out.RefID = hex.EncodeToString(id[:])
	if err := r.Validate(); err != nil && out.Judge(n.policy()).Verdict == clock.OK {
		out.Failure = failInvalid
	}
	return out
}

// dial makes the plain UDP socket that beevik/ntp would make, which has the kernel stamp what arrives, and ends its waiting with ctx
// until stop is called.
func dial(ctx context.Context, remote string) (c net.Conn, stop func() bool, err error) {
	var d net.Dialer
	if c, err = d.DialContext(ctx, "udp", remote); err != nil {
		return nil, nil, err
	}
	if _, ok := c.(*net.UDPConn); !ok { // of which beevik/ntp would not have the kernel's time
		return nil, nil, errors.Join(fmt.Errorf("a UDP socket is a %T", c), c.Close())
	}
	return c, context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) }), nil
}

// tap keeps what beevik/ntp drops: it reports a kiss of death without a transmit time as an error, and the code is lost.
type tap struct{ query, answer []byte }

func (t *tap) ProcessQuery(b *bytes.Buffer) error {
	t.query = bytes.Clone(b.Bytes())
	return nil
}

func (t *tap) ProcessResponse(b []byte) error {
	t.answer = bytes.Clone(b)
	return nil
}

// kiss is the code of an answer that is a kiss of death, and to this query.
func (t *tap) kiss() (code string, ok bool) {
	const stratum, refID, origin, transmit, size = 1, 12, 24, 40, 48
	if len(t.query) < size || len(t.answer) < size || t.answer[stratum] != 0 || !bytes.Equal(t.answer[origin:origin+8], t.query[transmit:transmit+8]) {
		return "", false
	}
	for _, c := range t.answer[refID : refID+4] {
		if c < ' ' || c > '~' {
			return "", true
		}
	}
	return string(t.answer[refID : refID+4]), true
}

func failure(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, ntp.ErrServerResponseMismatch):
		return failMismatch
	case errors.Is(err, ntp.ErrAuthFailed):
		return failAuth
	case errors.Is(err, ntp.ErrAuthNAK):
		return failNak
	case errors.Is(err, ntp.ErrInvalidMode):
		return failMode
	case errors.Is(err, ntp.ErrInvalidTransmitTime):
		return failTransmit
	case errors.Is(err, ntp.ErrServerTickedBackwards):
		return failBackwards
	case errors.Is(err, ntp.ErrInvalidTime):
		return failShort
	case errors.Is(err, syscall.ECONNREFUSED):
		return failRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN):
		return failUnreachable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return failTimeout
	}
	return failSystem
}
