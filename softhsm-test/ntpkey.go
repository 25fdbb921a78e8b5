package softhsmtest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// NTPKey is a symmetric key that a server shares with its clients (RFC 5905 section 7.3, RFC 8573).
type NTPKey struct {
	ID        uint32
	Algorithm string // as key files have it: AES128, AES256 (CMAC), SHA256 or SHA512
	Secret    []byte // 16 bytes for AES128, 32 for AES256
}

const (
	maxDigest = 20              // bytes of a digest in a packet of version 4 (RFC 7822); version 3 sends all
	maxMAC    = 4 + sha512.Size // bytes, with the key's number
)

// Line is the key as chrony's and ntpd's key files have it.
func (k *NTPKey) Line() string {
	return fmt.Sprintf("%d %s %s", k.ID, k.Algorithm, hex.EncodeToString(k.Secret))
}

// mac authenticates a packet: the key's number and its digest. An algorithm that there is not makes none.
func (k *NTPKey) mac(packet []byte) []byte {
	var digest []byte
	switch k.Algorithm {
	case "AES128", "AES256":
		digest = cmac(k.Secret, packet)
	case "SHA256":
		d := sha256.Sum256(append(bytes.Clone(k.Secret), packet...))
		digest = d[:]
	case "SHA512":
		d := sha512.Sum512(append(bytes.Clone(k.Secret), packet...))
		digest = d[:]
	}
	if packet[0]>>3&7 == 4 {
		digest = digest[:min(len(digest), maxDigest)]
	}
	return append(binary.BigEndian.AppendUint32(nil, k.ID), digest...)
}

// authenticate completes an answer as the query asks for.
func (b *Behaviour) authenticate(out, query []byte) []byte {
	nak := []byte{0, 0, 0, 0}
	asked := query[ntpHeader:]
	switch {
	case b.NAK:
		return append(out, nak...)
	case len(asked) == 0 || b.Key == nil:
		return out
	case !bytes.Equal(asked, b.Key.mac(query[:ntpHeader])):
		return append(out, nak...)
	}
	out = append(out, b.Key.mac(out)...)
	if b.WrongMAC {
		out[len(out)-1] ^= 1
	}
	return out
}

// cmac is AES-CMAC (RFC 4493), or nothing for a key of a wrong size.
func cmac(key, message []byte) []byte {
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	subkey := double(encrypt(c, make([]byte, aes.BlockSize)))
	mac := make([]byte, aes.BlockSize)
	for ; len(message) > aes.BlockSize; message = message[aes.BlockSize:] {
		mac = encrypt(c, xor(mac, message[:aes.BlockSize]))
	}
	last := bytes.Clone(message)
	if len(last) < aes.BlockSize {
		last = append(last, 0x80)
		last = append(last, make([]byte, aes.BlockSize-len(last))...)
		subkey = double(subkey)
	}
	return encrypt(c, xor(xor(mac, last), subkey))
}

func encrypt(c cipher.Block, in []byte) []byte {
	out := make([]byte, aes.BlockSize)
	c.Encrypt(out, in)
	return out
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// double multiplies by x in GF(2^128).
func double(in []byte) []byte {
	out := make([]byte, len(in))
	carry := byte(0)
	for i := len(in) - 1; i >= 0; i-- {
		out[i] = in[i]<<1 | carry
		carry = in[i] >> 7
	}
	out[len(out)-1] ^= carry * 0x87
	return out
}
