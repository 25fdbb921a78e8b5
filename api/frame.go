package api

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"bulla/record"
)

// HeaderSize is the length of a frame's header: the number of bytes that follow, big endian.
const HeaderSize = 4

// ReadLength reads a frame's length and refuses one beyond the limit with a *record.FieldError. io.EOF means that the other side
// closed between frames.
func ReadLength(r io.Reader, limit int) (int, error) {
	var h [HeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n == 0 || uint64(n) > uint64(limit) {
		return 0, &record.FieldError{Reason: fmt.Sprintf("a frame of %d bytes: must be 1 to %d", n, limit), TooLarge: n != 0}
	}
	return int(n), nil
}

// readFrame reads one frame of at most limit bytes, into buf where it fits.
func readFrame(r io.Reader, limit int, buf []byte) ([]byte, error) {
	n, err := ReadLength(r, limit)
	if err != nil {
		return nil, err
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading a frame of %d bytes: %w", n, err)
	}
	return buf[:n], nil
}

// BeginFrame appends room for a frame's header to dst; EndFrame fills it in when the JSON is behind it.
func BeginFrame(dst []byte) []byte { return append(dst, make([]byte, HeaderSize)...) }

// EndFrame sets the header of the frame that fills b.
func EndFrame(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-HeaderSize))
	return b
}

// Frame returns the hello as a frame.
func (h Hello) Frame() ([]byte, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding the hello: %w", err)
	}
	return EndFrame(append(BeginFrame(nil), b...)), nil
}

// ReadHello reads the other side's first frame, of at most 64 KiB; unknown members are ignored. What is wrong with it is a
// *record.FieldError, a refusal sent instead of it a *Refusal.
func ReadHello(r io.Reader) (Hello, error) {
	b, err := readFrame(r, 64<<10, nil)
	if err != nil {
		return Hello{}, err
	}
	return parseHello(b)
}

func parseHello(b []byte) (Hello, error) {
	var h struct {
		Hello
		Answer
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return Hello{}, &record.FieldError{Reason: "the hello must be {\"v\":1,\"max_frame\":N}: " + err.Error()}
	}
	switch {
	case h.Status == StatusRefused:
		return Hello{}, h.Answer.Err()
	case h.V != Version:
		return Hello{}, &record.FieldError{Field: "v", Reason: fmt.Sprintf("the hello is of version %d, this side speaks %d", h.V, Version)}
	case h.MaxFrame < MinFrame:
		return Hello{}, &record.FieldError{Field: "max_frame", Reason: fmt.Sprintf("the hello says %d: must be at least %d", h.MaxFrame, MinFrame)}
	}
	h.MaxFrame = min(h.MaxFrame, MaxFrame)
	return h.Hello, nil
}
