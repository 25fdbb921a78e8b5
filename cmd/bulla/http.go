package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"bulla/api"
	"bulla/record"
)

// appliance is a bullad that answers on http.sock.
type appliance struct {
	client *http.Client
	prefix string // of the paths of one log
	log    api.LogStatus
	status api.Status

	purpose string // of what is read
}

// answerLimit bounds what is read of one answer, in bytes: a page of the largest entries.
const answerLimit = 128 << 20

// connect asks the appliance for its status, and picks the log that --log names, or the only one.
func (t *tool) connect(ctx context.Context) (*appliance, error) {
	a, err := t.reach(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range a.status.Logs {
		if t.log == l.Origin || t.log == l.Name || t.log == "" && len(a.status.Logs) == 1 {
			a.log, a.prefix = l, "/logs/"+url.PathEscape(l.Name)
			return a, nil
		}
	}
	var origins []string
	for _, l := range a.status.Logs {
		origins = append(origins, l.Origin)
	}
	if t.log == "" {
		return nil, usagef("the appliance has several logs: name one with --log: %s", strings.Join(origins, ", "))
	}
	return nil, usagef("the appliance has no log %q; it has %s", t.log, strings.Join(origins, ", "))
}

// reach asks the appliance for its status.
func (t *tool) reach(ctx context.Context) (*appliance, error) {
	_, path := t.sockets()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	a := &appliance{purpose: t.purpose, client: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: fetchers, DisableCompression: true}}}
	if err := a.getJSON(ctx, "/v1/status", &a.status); err != nil {
		return nil, err
	}
	return a, nil
}

// notThere is an answer of 404.
type notThere struct{ message string }

func (e *notThere) Error() string { return e.message }

// do sends a request and returns the body of a successful answer.
func (a *appliance) do(ctx context.Context, method, path, accept string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://bulla"+path, body)
	if err != nil {
		return nil, fmt.Errorf("asking the appliance: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	a.state(req)
	res, err := a.client.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			err = fmt.Errorf("%w (is bullad running? see --socket)", op)
		}
		return nil, coded(exitUnavailable, fmt.Errorf("asking the appliance: %w", err))
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, answerLimit+1))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, coded(exitUnavailable, fmt.Errorf("asking the appliance: reading %s: %w", path, err))
	}
	if len(b) > answerLimit {
		return nil, coded(exitUnavailable, fmt.Errorf("asking the appliance: the answer to %s is larger than %d bytes", path, answerLimit))
	}
	if res.StatusCode/100 == 2 {
		return b, nil
	}
	var f api.Failure
	if err := json.Unmarshal(b, &f); err != nil || f.Error.Message == "" {
		return nil, coded(exitUnavailable, fmt.Errorf("asking the appliance: %s answered %s", path, res.Status))
	}
	if res.StatusCode == http.StatusNotFound {
		return nil, &notThere{f.Error.Message}
	}
	if wait := res.Header.Get("Retry-After"); wait != "" && f.Error.Code == record.CodeBusy {
		f.Error.Message += fmt.Sprintf("; try again in %s s", printable(wait, 20))
	}
	return nil, coded(exitUnavailable, &api.Refusal{Code: f.Error.Code, Message: f.Error.Message, Field: f.Error.Field})
}

func (a *appliance) get(ctx context.Context, path string) ([]byte, error) {
	return a.do(ctx, http.MethodGet, path, "", nil)
}

func (a *appliance) getJSON(ctx context.Context, path string, v any) error {
	b, err := a.get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return coded(exitUnavailable, fmt.Errorf("asking the appliance: the answer to %s: %w", path, err))
	}
	return nil
}
