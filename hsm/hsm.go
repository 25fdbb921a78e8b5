// Package hsm signs with keys that never leave a PKCS#11 token.
//
// A [Module] is one PKCS#11 library, loaded and initialised once in the process; a [Token] is one token in it, logged in; a [Key] is
// one private key in the token, a [crypto.Signer] pinned to its public key. [ParseURI] reads the RFC 7512 URIs that name them:
//
//	u, err := hsm.ParseURI("pkcs11:token=audit;object=log?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/bulla/pin")
//	m, err := hsm.Load(u.ModuleConfig())
//	t, err := m.Token(ctx, u.TokenConfig())
//	k, err := t.Key(ctx, u.KeyRef())
//	sig, err := k.SignContext(ctx, digest, crypto.SHA256)
//
// # What a module may do to us, and what is done about it
//
// A PKCS#11 library is C code in our address space, and handles are small integers that it uses again:
//   - Two threads in one session crash the process. Each session belongs to one goroutine; nobody else ever uses its handle.
//   - C_Finalize under a running call crashes the process. Every call passes a gate, which C_Finalize shuts and finds empty first.
//   - After C_Initialize old handles name other objects: a stale handle signs with the wrong key and reports success. Handles carry
//     the generation they were found in, and no signature is returned that does not verify under the pinned public key.
//   - Tokens sign digests of any length and ignore parameters. Lengths and options are checked here.
//   - A token that went away answers most calls as if it were there; only C_GetTokenInfo tells. A supervisor a module asks it, also
//     while nobody signs, and brings sessions, login and handles back when the token returns.
//   - A wrong PIN counts towards a lock. A PIN that a token refused is not tried again in this process.
//   - A call may hang, and cannot be cancelled. Its caller gets [ErrUnavailable] at the deadline; the session stays with the call,
//     and when all sessions are held so, callers are refused at once. No session or thread is started in their place.
//
// # What it does not do
//
// It does not survive a library that corrupts memory: put such a module behind p11-kit's remoting. The PIN is overwritten in Go's
// memory after use, but miekg/pkcs11 leaves a freed copy on the C heap, and the library may keep its own. Attributes such as
// CKA_NEVER_EXTRACTABLE are the token's claims; [Token.TryExtract] tries them, it proves nothing about hardware.
package hsm

import (
	"errors"
	"fmt"
)

// What a caller branches on. An error that wraps none of them is the caller's misuse, or an [*Error] that asking again does not mend.
var (
	// ErrUnavailable: the token cannot serve now. Nothing was signed or it was discarded; the supervisor is at work, ask again later.
	ErrUnavailable = errors.New("token unavailable")
	// ErrPIN: the token refused the PIN, or has one try left. It is not tried again until the process restarts.
	ErrPIN = errors.New("PIN refused")
	// ErrNoPIN: the PIN cannot be had to open a token: no file, or one that others may read. The token was not asked.
	ErrNoPIN = errors.New("no PIN")
	// ErrNoToken: no token, or more than one, matches the configuration.
	ErrNoToken = errors.New("no such token")
	// ErrNoKey: no key matches.
	ErrNoKey = errors.New("no such key")
	// ErrKeyGone: a key that was there is gone while its token works. It signs again if it is restored.
	ErrKeyGone = errors.New("key is gone from the token")
	// ErrManyKeys: more than one key matches, so none is used.
	ErrManyKeys = errors.New("more than one key matches")
	// ErrWrongKey: the key found, or the key that signed, is not the pinned one. Stop and look.
	ErrWrongKey = errors.New("not the pinned key")
	// ErrKeyExists: a key of that label is in the token already.
	ErrKeyExists = errors.New("key exists already")
	// ErrUnsupported: the token or this package cannot do that algorithm.
	ErrUnsupported = errors.New("not supported")
	// ErrWeakKey: a key's attributes are not those of a key that stays in its token.
	ErrWeakKey = errors.New("key is not protected as required")
	// ErrExtractable: the module let a key out that it had called sensitive and not extractable.
	ErrExtractable = errors.New("the module lets non-extractable keys out")
	// ErrClosed: the token or module was closed.
	ErrClosed = errors.New("closed")
)

// Error is a failed PKCS#11 call.
type Error struct {
	Call string // C_SignInit and so on
	Code uint   // CKR_*
}

func (e *Error) Error() string {
	if name := codeName(e.Code); name != "" {
		return fmt.Sprintf("%s: %s (0x%X)", e.Call, name, e.Code)
	}
	return fmt.Sprintf("%s: error 0x%X", e.Call, e.Code)
}
