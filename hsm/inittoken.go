package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// InitToken makes a token in a free slot of the module: its label, the security officer's PIN and the user's (PKCS#11 sections 5.5
// and 5.6). It never touches a token that exists, and refuses a label that one has already. The PINs are zeroed before it returns.
func (m *Module) InitToken(ctx context.Context, label string, soPIN, userPIN []byte) error {
	defer clear(soPIN)
	defer clear(userPIN)
	if label == "" || len(label) > 32 {
		return fmt.Errorf("making token %q: its label must have 1 to 32 bytes", label)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Slots are renumbered by it, so nobody else may be inside.
	m.restarting.Lock()
	defer m.restarting.Unlock()
	if !m.inUse() {
		return ErrClosed
	}
	if err := m.gate.shut(drainTime); err != nil {
		return err
	}
	defer m.gate.open()
	if err := m.initToken(label, string(soPIN), string(userPIN)); err != nil {
		return fmt.Errorf("making token %q: %w", label, err)
	}
	return nil
}

func (m *Module) initToken(label, soPIN, userPIN string) (err error) {
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return call("C_GetSlotList", err)
	}
	free, found := uint(0), false
	for _, slot := range slots {
		info, err := m.lib.GetTokenInfo(slot)
		switch {
		case err != nil:
			return call("C_GetTokenInfo", err)
		case info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0:
			free, found = slot, true
		case info.Label == label:
			return errors.New("there is a token of that label already")
		}
	}
	if !found {
		return fmt.Errorf("%w: the module has no free slot", ErrNoToken)
	}
	if err := m.lib.InitToken(free, soPIN, label); err != nil {
		return call("C_InitToken", err)
	}
	sh, err := m.lib.OpenSession(free, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return call("C_OpenSession", err)
	}
	defer func() { err = errors.Join(err, call("C_CloseSession", m.lib.CloseSession(sh))) }()
	if err := m.lib.Login(sh, pkcs11.CKU_SO, soPIN); err != nil {
		return call("C_Login", err)
	}
	if err := m.lib.InitPIN(sh, userPIN); err != nil {
		return call("C_InitPIN", err)
	}
	return call("C_Logout", m.lib.Logout(sh))
}
