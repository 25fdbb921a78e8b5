package server

import (
	"encoding/hex"
	"net/http"

	"bulla/api"
	"bulla/ledger"
	"bulla/record"
)

// status writes how logs and machine are doing.
func (c *call) status() error {
	out := &api.Status{}
	if c.s.cfg.Status != nil {
		out.Machine = c.s.cfg.Status()
	}
	for _, l := range c.s.cfg.Logs {
		st, err := l.Ledger.Status()
		if err != nil {
			return err
		}
		genesis := l.Ledger.State().Genesis
		one := api.LogStatus{
			Name: l.Name, Origin: st.Origin, Size: st.Size, Checkpoint: string(st.Checkpoint), VKeys: st.VKeys, Genesis: hex.EncodeToString(genesis[:]),
			LastFault: st.LastFault, Waiting: st.Waiting, Entries: st.Stats.Entries, Batches: st.Stats.Batches,
		}
		for code, n := range st.Stats.Refused {
			if one.Refused == nil {
				one.Refused = map[string]uint64{}
			}
			one.Refused[string(code)] = n
		}
		if r := c.s.unfit(&l); r != nil {
			one.Refusing = &api.FailureDetail{Code: r.Code, Message: r.Message}
		}
		out.Logs = append(out.Logs, one)
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// unfit is why a log takes no events now, whoever sends them, as far as is known without trying; nil if it does.
func (s *server) unfit(l *Log) *ledger.Refusal {
	if err := l.Ledger.Err(); err != nil {
		return &ledger.Refusal{Code: record.CodeInternal, Message: err.Error()}
	}
	if r := l.Ledger.Held(); r != nil {
		return r
	}
	if s.cfg.Now != nil {
		if err := l.Ledger.State().Policy.Clock.Allows(s.cfg.Now()); err != nil {
			return &ledger.Refusal{Code: record.CodeClock, Message: err.Error()}
		}
	}
	return nil
}

// alive says that the process answers.
func (c *call) alive() error {
	writeJSON(c.w, http.StatusOK, map[string]string{"status": "alive"})
	return nil
}

// ready says whether events are taken by every log.
func (c *call) ready() error {
	for i := range c.s.cfg.Logs {
		l := &c.s.cfg.Logs[i]
		if r := c.s.unfit(l); r != nil {
			out := *r
			out.Message = "log " + l.Name + ": " + r.Message
			fail(c.w, http.StatusServiceUnavailable, &out)
			return nil
		}
	}
	writeJSON(c.w, http.StatusOK, map[string]string{"status": "ready"})
	return nil
}

// state says what each log refuses, or "ok".
func (c *call) state() error {
	out := map[string]api.FailureDetail{}
	for i := range c.s.cfg.Logs {
		l := &c.s.cfg.Logs[i]
		out[l.Name] = api.FailureDetail{Code: "ok"}
		if r := c.s.unfit(l); r != nil {
			out[l.Name] = api.FailureDetail{Code: r.Code, Message: r.Message}
		}
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}
