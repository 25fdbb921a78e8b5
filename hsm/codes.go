package hsm

import (
	"errors"
	"strings"

	"github.com/miekg/pkcs11"
)

// Names of PKCS#11 3.0 that miekg/pkcs11 v1.1.2 lacks.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057
	ckmAESKeyWrapKWP       = 0x210B
	ckmAESKeyWrapPKCS7     = 0x210C
	ckrActionProhibited    = 0x1B
)

// call names the PKCS#11 function that returned err.
func call(name string, err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return err
	}
	return &Error{Call: name, Code: uint(code)}
}

// codeOf returns err's CKR code, 0 when there is none.
func codeOf(err error) uint {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return pkcs11.CKR_OK
}

func codeName(code uint) string {
	if code == ckrActionProhibited {
		return "CKR_ACTION_PROHIBITED"
	}
	_, name, _ := strings.Cut(pkcs11.Error(code).Error(), "CKR_")
	if name == "" {
		return ""
	}
	return "CKR_" + name
}

// A remedy is what brings an operation back after an error.
type remedy int

const (
	giveUp       remedy = iota // nothing does: report it
	reopen                     // the session is dead or in an unknown state: open another
	relogin                    // nobody is logged in
	refind                     // the object's handle is dead: look at the login, then find it again
	retry                      // perhaps nothing is wrong: once more, then suspect session and token
	reinitialise               // the library has lost its token
)

// remedyFor classifies an error of an operation in a session. Errors that are no CKR code are ours and final.
func remedyFor(err error) remedy {
	if errors.Is(err, errBadSignature) {
		return refind
	}
	switch code := codeOf(err); code {
	case pkcs11.CKR_OK:
		return giveUp
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_BUFFER_TOO_SMALL:
		return reopen
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return relogin
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID:
		return refind
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID:
		return reinitialise
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_SENSITIVE,
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_KEY_UNEXTRACTABLE,
		pkcs11.CKR_KEY_NOT_WRAPPABLE, ckrActionProhibited, pkcs11.CKR_ARGUMENTS_BAD,
		pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED,
		pkcs11.CKR_DATA_LEN_RANGE, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_TOKEN_WRITE_PROTECTED:
		return giveUp
	default: // CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED, vendors' own
		if pinRefused(code) {
			return giveUp
		}
		return retry
	}
}

// pinRefused says that C_Login answered about the PIN itself: another try could lock the token.
func pinRefused(code uint) bool {
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED,
		pkcs11.CKR_USER_PIN_NOT_INITIALIZED, pkcs11.CKR_USER_TYPE_INVALID, pkcs11.CKR_ARGUMENTS_BAD:
		return true
	}
	return false
}
