package ntp

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"bulla/clock"
)

// chronyd's command protocol, version 6, as candm.h of chrony 4 has it: a request as long as its reply, big-endian.
const (
	cmdVersion     = 6
	cmdRequest     = 1
	cmdReply       = 2
	reqTracking    = 33
	rpyTracking    = 5
	trackingHeader = 28
	trackingSize   = trackingHeader + 76
	chronydTimeout = time.Second
)

// tracking is what chronyd says of the system's clock, or nil: not having one is as good as any other state.
func tracking(ctx context.Context, address string) *clock.Chronyd {
	c, err := askChronyd(ctx, address)
	if err != nil {
		return nil
	}
	return c
}

func askChronyd(ctx context.Context, address string) (*clock.Chronyd, error) {
	d := net.Dialer{Timeout: chronydTimeout}
	c, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("asking chronyd: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(chronydTimeout)); err != nil {
		return nil, fmt.Errorf("asking chronyd: %w", err)
	}
	sequence := rand.Uint32()
	query := make([]byte, trackingSize)
	query[0], query[1] = cmdVersion, cmdRequest
	binary.BigEndian.PutUint16(query[4:], reqTracking)
	binary.BigEndian.PutUint32(query[8:], sequence)
	if _, err := c.Write(query); err != nil {
		return nil, fmt.Errorf("asking chronyd: %w", err)
	}
	answer := make([]byte, trackingSize+1)
	n, err := c.Read(answer)
	if err != nil {
		return nil, fmt.Errorf("asking chronyd: %w", err)
	}
	return parseTracking(answer[:n], sequence)
}

func parseTracking(b []byte, sequence uint32) (*clock.Chronyd, error) {
	be := binary.BigEndian
	if len(b) != trackingSize || b[0] != cmdVersion || b[1] != cmdReply || be.Uint16(b[4:]) != reqTracking || be.Uint16(b[6:]) != rpyTracking ||
		be.Uint16(b[8:]) != 0 || be.Uint32(b[16:]) != sequence {
		return nil, errors.New("asking chronyd: not an answer to this question")
	}
	b = b[trackingHeader:]
	t := &clock.Chronyd{RefID: hex.EncodeToString(b[:4]), Stratum: int(be.Uint16(b[24:])), Leap: int(be.Uint16(b[26:]))}
	switch be.Uint16(b[20:]) {
	case 1:
		t.Address = netip.AddrFrom4([4]byte(b[4:8])).String()
	case 2:
		t.Address = netip.AddrFrom16([16]byte(b[4:20])).String()
	}
	const second = int64(time.Second)
	if sec, ns := int64(be.Uint64(b[28:])), int64(be.Uint32(b[36:])); 0 <= sec && sec < math.MaxInt64/second && ns < second { // -1 and the like: never set
		t.RefTime = sec*second + ns
	}
	t.Correction = seconds(be.Uint32(b[40:]))
	t.RootDelay, t.RootDisp = seconds(be.Uint32(b[64:])), seconds(be.Uint32(b[68:]))
	return t, nil
}

// seconds reads chrony's own floating point format, a 7-bit exponent and a 25-bit coefficient, as ns within +-clock.MaxInt.
func seconds(x uint32) int64 {
	exp, coef := int(int32(x)>>25), int(int32(x<<7)>>7)
	ns := math.Ldexp(float64(coef), exp-25) * float64(time.Second)
	return int64(max(min(ns, clock.MaxInt), -clock.MaxInt))
}
