package hsm_test

import (
	"bytes"
	"strings"
	"testing"

	"bulla/hsm"
)

func TestInitToken(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	path, _ := faulty(t)
	m := load(t, hsm.ModuleConfig{Path: path})
	var pressures []*pressure
	for _, label := range []string{"first", "second"} { // the second beside calls to the first
		so, user := []byte(soPIN), []byte(userPIN)
		must(t, m.InitToken(t.Context(), label, so, user))
		if !bytes.Equal(so, make([]byte, len(so))) || !bytes.Equal(user, make([]byte, len(user))) {
			t.Error("a PIN is still in memory")
		}
		tok, err := m.Token(t.Context(), hsm.TokenConfig{Label: label, PIN: pin(userPIN)})
		must(t, err)
		pressures = append(pressures, press(2, generate(t, tok, "", "log")))
	}
	for label, say := range map[string]string{"first": "already", "": "1 to 32", strings.Repeat("x", 33): "1 to 32"} {
		if err := m.InitToken(t.Context(), label, []byte(soPIN), []byte(userPIN)); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("label %q: %v", label, err)
		}
	}
	for _, p := range pressures {
		p.end(t)
		if p.failed.Load() != 0 {
			t.Errorf("%d signatures were refused meanwhile", p.failed.Load())
		}
	}
}
