package hsm

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A gate lets calls into a module until it is shut. It is a read-write lock whose writer gives up after a while: a call that hangs
// must not hold up everybody who comes later.
type gate struct {
	mu     sync.Mutex
	inside int
	opened chan struct{} // while shut: closed when the gate opens
	empty  chan struct{} // while shut: closed when the last call leaves
}

var errCallsInside = errors.New("a call into the module does not return")

// enter waits until the gate is open. Each enter that returns nil needs a leave.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		opened := g.opened
		if opened == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// shut lets nobody in and waits until nobody is inside. When that takes longer than patience the gate opens again, with an error.
// There is one caller at a time, who opens the gate after success.
func (g *gate) shut(patience time.Duration) error {
	g.mu.Lock()
	g.opened = make(chan struct{})
	if g.inside == 0 {
		g.mu.Unlock()
		return nil
	}
	empty := make(chan struct{})
	g.empty = empty
	g.mu.Unlock()

	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-empty:
		return nil
	case <-timer.C:
		g.open()
		return errCallsInside
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.opened)
	g.opened, g.empty = nil, nil
}
